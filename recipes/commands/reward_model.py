"""A reward model: a model + comparisons of one objective -> a one-output scorer (Bradley-Terry).

align reward-model --model runs/sft --data helpful.jsonl.gz --out runs/rm-helpful
align reward-model --config recipes/configs/reward_model.yaml --model runs/sft --data helpful.jsonl.gz
align reward-model --pooled --model runs/sft --data helpful.jsonl.gz    # solved, on the frozen model's summed states
align reward-model --average runs/rm-1 runs/rm-2 --out runs/rm-warm     # one model of the average weights (WARM)
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.errors import UserError
from align.runs import Ledger, Metrics, model_dir, run_stage
from recipes.config import option, parse, section_field, with_flags
from recipes.pipeline.inputs import closing_line, content_key
from recipes.pipeline.objectives import is_cost_model

if TYPE_CHECKING:
    from align.data import CleanConfig
    from align.data.load import Row
    from align.training.pooled_reward import PooledConfig
    from align.training.reward_model import RewardModelConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str | None = option(None, help="run, Hugging Face directory or hub id of the backbone (decoder or encoder)")
    data: str | None = option(None, help="comparisons (prompt, chosen, rejected): file, directory or hub id")
    out: str = option("runs/reward-model", help="run directory to write")
    objective: str | None = option(None, help="keep only rows of this objective, where rows carry one")
    held_out: float = option(0.1, help="share of the prompts kept for validation accuracy; 0 for none")
    pooled: bool = option(False, help="solve for a linear reward on the frozen decoder's summed states: seconds")
    average: tuple[str, ...] = option((), help="runs of reward models whose weights are averaged, in place of training")
    limit: int | None = option(None, help="read only the first rows")
    max_steps: int | None = option(None, help="stop after so many optimizer steps")
    seed: int | None = option(None, help="seed of the new head, the order of rows and dropout")
    cleaning: CleanConfig = section_field("align.data:CleanConfig", help="keys of align.data.CleanConfig")
    solve: PooledConfig = section_field(
        "align.training.pooled_reward:PooledConfig",
        help="keys of align.training.pooled_reward.PooledConfig",
    )
    training: RewardModelConfig = section_field(
        "align.training.reward_model:RewardModelConfig", help="keys of align.training.reward_model.RewardModelConfig"
    )


def load(config: Config, data: str) -> tuple[Mapping[str, Sequence[Row]], Counter[str]]:
    """({"train", "validation"} -> rows, drops by reason): one objective, cleaned, no prompt on both sides."""
    from align.data import clean_comparisons, held_out_parts, load_comparisons

    drops = Counter[str]()
    rows = load_comparisons(data, limit=config.limit, drops=drops)
    if config.objective is not None:
        rows = [row for row in rows if row.get("objective") == config.objective]
        if not rows:
            raise UserError(f"{data}: no row has objective {config.objective!r}; leave --objective out or correct it")
    kept, dropped = clean_comparisons(rows, config.cleaning)
    drops.update(dropped)
    return held_out_parts(kept, share=config.held_out, seed=config.seed or 0), drops


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align reward-model", about=__doc__ or "")
    if config.average:
        return _average(config)
    if config.model is None or config.data is None:
        raise UserError(f"{where}: give --model and --data, or --average with runs of reward models")
    training = with_flags(config.training, max_steps=config.max_steps, seed=config.seed)
    checks.shares(config, "held_out", place=f"{where}: ")
    model = model_dir(config.model)
    parts, drops = load(config, config.data)

    def body(folder: Path, ledger: Ledger) -> Metrics:
        from align.training.pooled_reward import fit_pooled_reward
        from align.training.reward_model import train_reward_model

        train, validation = parts["train"], parts["validation"] or None
        if config.pooled:
            metrics = fit_pooled_reward(
                config.solve, model=model, rows=train, validation=validation, out=folder, ledger=ledger
            )
        else:
            metrics = train_reward_model(
                training, model=model, rows=train, validation=validation, out=folder, ledger=ledger
            )
        return {"rows": {name: len(rows) for name, rows in parts.items()}, "dropped": dict(drops), **metrics}

    keyed = {"cleaning": config.cleaning, "training": training, "objective": config.objective}
    if config.pooled:
        print("note: --pooled solves for the reward; keys of training are not read", file=sys.stderr)
        keyed = {"cleaning": config.cleaning, "pooled": config.solve, "objective": config.objective}
        keyed |= {"seed": config.seed} if config.seed else {}  # of the validation prompts, and nothing else
    keyed |= {"held_out": config.held_out, "limit": config.limit}
    inputs = {"model": content_key(config.model), "data": content_key(config.data)}
    print(closing_line(run_stage(config.out, stage="reward-model", config=keyed, body=body, inputs=inputs)))
    return 0


def _average(config: Config) -> int:
    """Weights of several reward models averaged, equally (WARM, Rame et al. 2024, arXiv 2401.12187)."""
    if config.model or config.data or config.pooled or len(config.average) < 2:
        raise UserError("--average takes at least two runs of reward models and, beside them, --out alone")
    costs = [run for run in config.average if is_cost_model(run)]
    if costs:
        raise UserError(f"--average: {costs[0]} is a cost model, of which less is better; average reward models alone")

    def body(folder: Path, ledger: Ledger) -> Metrics:
        from align.policies.merging import average_scorers

        average_scorers(config.average, out=folder / "model")
        return {"averaged": len(config.average)}

    inputs = {f"member {k}": content_key(run) for k, run in enumerate(config.average)}
    print(closing_line(run_stage(config.out, stage="reward-model", config={"average": True}, body=body, inputs=inputs)))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("reward-model")
