"""Consistency training: a finished policy + prompts + shifts -> the policy, doing under them what it does without.

align consistency runs/dpo --weights 0,1 --data prompts.jsonl --shift wrapper leetspeak --out runs/dpo-consistent
align consistency runs/dpo --weights 0,1 --data prompts.jsonl --shift encoding --kind activations --out runs/dpo-act

No labels are read: the target is what the policy itself does on the plain prompt. Hold a family of shifts out of
--shift, and measure on it (align suites, align compare): that is what training on shifts is for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.data.sources import text_prompts
from align.errors import UserError
from align.preferences import parse_preference
from align.runs import Ledger, Metrics, model_dir, run_stage
from recipes.config import option, parse, section_field, with_flags
from recipes.pipeline.inputs import closing_line, content_key

if TYPE_CHECKING:
    from align.training.consistency.settings import ConsistencyConfig, PromptPair

DEFAULTS = Path(__file__).parents[1] / "configs" / "consistency.yaml"


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = option(help="the finished policy: run, point of a family (with --weights), directory or hub id")
    data: str = option(help="rows with a prompt: file, directory or hub id; their replies, if any, are not read")
    shift: tuple[str, ...] = option(help="shifts of evals/shifts to train on: names or families (docs/shifts.md)")
    weights: str | None = option(None, help="the family's point, like 0.3,0.7")
    reference: str | None = option(None, help="what it was trained from: for target carried, embeddings restored")
    out: str = option("runs/consistency", help="run directory to write")
    kind: str | None = option(None, help="outputs (BCT: imitate own replies) or activations (ACT: match hidden states)")
    limit: int | None = option(None, help="use only the first prompts")
    max_steps: int | None = option(None, help="stop after so many optimizer steps")
    seed: int | None = option(None, help="seed of replies, shifts and the order of rows")
    training: ConsistencyConfig = section_field(
        "align.training.consistency.settings:ConsistencyConfig",
        help="keys of align.training.consistency.settings.ConsistencyConfig",
    )


def pairs_of(prompts: Sequence[str], shifts: Sequence[str], *, seed: int, drops: Counter[str]) -> list[PromptPair]:
    """Each prompt with what each shift makes of it; what a shift cannot do to a prompt is counted in `drops`."""
    from align.training.consistency.settings import PromptPair
    from evals.shifts.augment import augmented

    rows = [{"id": str(number), "prompt": prompt} for number, prompt in enumerate(prompts)]
    made = augmented(rows, shifts=shifts, seed=seed, drops=drops)
    return [PromptPair(row["plain_prompt"], row["prompt"]) for row in made if "plain_prompt" in row]


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(
        Config, argv, program="align consistency", about=__doc__ or "", positional=("model",), defaults=DEFAULTS
    )
    training = with_flags(config.training, kind=config.kind, max_steps=config.max_steps, seed=config.seed)
    if training.needs_reference and config.reference is None:
        raise UserError(f"{where}: target carried and embeddings restored read the reference; name it with --reference")
    from align.policies.export import model_at

    policy = model_at(config.model, None if config.weights is None else parse_preference(config.weights))
    drops, prompts = Counter[str](), text_prompts(config.data, limit=config.limit)
    pairs = pairs_of(prompts, config.shift, seed=training.seed, drops=drops)

    def body(folder: Path, ledger: Ledger) -> Metrics:
        from align.policies.base import ModelPolicy
        from align.training.consistency.settings import Models
        from align.training.consistency.stage import consistency

        models = Models(ModelPolicy(policy), None if config.reference is None else model_dir(config.reference))
        found = consistency(training, models=models, pairs=pairs, out=folder, ledger=ledger)
        return {"prompts": len(prompts), "pairs": len(pairs), "dropped": dict(drops), **found}

    inputs = {"model": content_key(policy), "data": content_key(config.data)}
    inputs |= {"reference": content_key(config.reference)} if config.reference else {}
    keyed = {"training": training, "shift": config.shift, "weights": config.weights, "limit": config.limit}
    print(closing_line(run_stage(config.out, stage="consistency", config=keyed, body=body, inputs=inputs)))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("consistency")
