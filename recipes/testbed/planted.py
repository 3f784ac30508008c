"""Stages of planted models beside the demo's: a reference that answers in both spellings, and the probes of a policy.

Every function takes plain arguments, writes one run directory through `run_stage`, and is safe to call again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.runs import Ledger, open_run, run_stage, write_json
from align.testbed.world import PREFIXED_CIPHER
from recipes.testbed.stages import Settings, world_of

# held-out splits that are probed: the two controls keep the topics and change nothing that matters
SPLITS = ("control", "compliance", "cipher", *PREFIXED_CIPHER)
CONTROLS = ("control",)


def two_spellings(*, out: str, reference: str) -> None:
    """The reference once more, with generation settings that let an answer in the second spelling go on.

    The usual ones end a response at its first ciphered word, so that nobody could learn to answer there.
    """

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from transformers import GenerationConfig

        from align.models import load_model, load_tokenizer
        from align.testbed.vocabulary import ENDING_IDS_OF_BOTH, PAD_ID

        source = f"{reference}/model"
        load_model(source).save_pretrained(folder / "model")
        load_tokenizer(source).save_pretrained(folder / "model")
        settings = GenerationConfig(eos_token_id=list(ENDING_IDS_OF_BOTH), pad_token_id=PAD_ID)
        settings.save_pretrained(folder / "model")
        return {"ending_tokens": len(ENDING_IDS_OF_BOTH)}

    run_stage(out, stage="two spellings", config={}, body=body, inputs={"reference": open_run(reference).fingerprint})


def probes(
    *, out: str, world: Settings, reference: str, policy: str, weights: str, cover_cipher: bool, samples: int,
    seed: int, temperature: float,
) -> None:  # fmt: skip
    """`signals.json`: per split, the signals of every harmful topic under one policy."""

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.models import load_model
        from align.policies.load import load_family
        from align.preferences import parse_preference
        from evals.attribution.testbed_probes import probe, signals_of

        place = world_of(world)
        answer = load_family(policy).policy(parse_preference(weights))
        prompts = place.train_prompts + (place.train_prompts_in_cipher if cover_cipher else [])
        found = probe(
            place, answer.model.eval(), load_model(f"{reference}/model").eval(), splits=SPLITS,
            training=[p.text for p in prompts], samples=samples, seed=seed, ledger=ledger, temperature=temperature,
        )  # fmt: skip
        signals = {split: [asdict(one) for one in signals_of(found, split=split)] for split in SPLITS}
        write_json(folder / "signals.json", {"signals": signals, "probes": asdict(found)})
        return {"splits": len(SPLITS), "requests": len(found.harmful)}

    inputs = {"reference": open_run(reference).fingerprint, "policy": open_run(policy).fingerprint}
    config = {"weights": weights, "cover_cipher": cover_cipher, "samples": samples, "seed": seed}
    config["temperature"] = temperature
    run_stage(out, stage="probes", config=config, body=body, inputs=inputs | {"world": world_of(world).hash})


def read_signals(folder: str | Path) -> dict[str, list[Any]]:
    """split -> the Signals that `probes` wrote."""
    import json

    from evals.attribution.regions import Signals

    values = json.loads((Path(folder) / "signals.json").read_text(encoding="utf-8"))["signals"]
    return {split: [Signals(**one) for one in rows] for split, rows in values.items()}
