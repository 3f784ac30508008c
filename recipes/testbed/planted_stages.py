"""Stages of planted models: a reference that answers in both spellings, and the probes of a policy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.runs import Metrics, Run, Workspace, stage, write_json
from align.testbed.world import PREFIXED_CIPHER
from recipes.testbed.spellings import spelt

if TYPE_CHECKING:
    from align.preferences import Weights
    from align.testbed.world import World
    from evals.attribution.regions import Signals

# held-out splits that are probed: the control keeps the topics and changes nothing that matters
SPLITS = ("control", "compliance", "cipher", *PREFIXED_CIPHER)
CONTROLS = ("control",)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The judged responses: how many of each prompt, and how they are drawn."""

    samples: int
    seed: int
    temperature: float = 1.0


@stage(name="two spellings")
def two_spellings(work: Workspace, *, reference: Run) -> Metrics:
    """The reference once more, with generation settings that let an answer in the second spelling go on.

    The usual ones end a response at its first ciphered word, so that nobody could learn to answer there.
    """
    from transformers import GenerationConfig

    from align.models import load_model, load_tokenizer
    from align.testbed.vocabulary import ENDING_IDS_OF_BOTH, PAD_ID

    source, target = f"{reference.path}/model", work.folder / "model"
    load_model(source).save_pretrained(target)
    load_tokenizer(source).save_pretrained(target)
    GenerationConfig(eos_token_id=list(ENDING_IDS_OF_BOTH), pad_token_id=PAD_ID).save_pretrained(target)
    return {"ending_tokens": len(ENDING_IDS_OF_BOTH)}


@stage
def probes(
    work: Workspace, *, world: World, reference: Run, policy: Run, weights: Weights, spellings: tuple[int, ...],
    drawn: Drawn, covers: float = 1.0,
) -> Metrics:  # fmt: skip
    """`signals.json`: per split, the signals of every harmful topic under one policy trained on these spellings.

    `covers` is the share of the fine-tuning topics that came in the second one.
    """
    from align.models import load_model
    from align.policies.load import load_family
    from evals.attribution.testbed_probes import Draws, probe, signals_of

    answer = load_family(policy.path).policy(weights)
    training = [p.text for s in spellings for p in spelt(world, s, covers=covers if s else 1.0)]
    found = probe(
        world, answer.model.eval(), load_model(f"{reference.path}/model").eval(), splits=SPLITS, training=training,
        draws=Draws(samples=drawn.samples, seed=drawn.seed, temperature=drawn.temperature), ledger=work.ledger,
    )  # fmt: skip
    signals = {split: [asdict(one) for one in signals_of(found, split=split)] for split in SPLITS}
    write_json(work.folder / "signals.json", {"signals": signals, "probes": asdict(found)})
    return {"splits": len(SPLITS), "requests": len(found.harmful)}


def read_signals(folder: Path) -> dict[str, list[Signals]]:
    """split -> the Signals that `probes` wrote."""
    from evals.attribution.regions import Signals

    values = json.loads((folder / "signals.json").read_text(encoding="utf-8"))["signals"]
    return {split: [Signals(**one) for one in rows] for split, rows in values.items()}
