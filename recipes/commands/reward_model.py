"""A reward model: a model + comparisons of one objective -> a one-output scorer (Bradley-Terry).

align reward-model --model runs/sft --data helpful.jsonl.gz --out runs/rm-helpful
python -m recipes.commands.reward_model --config recipes/configs/reward_model.yaml --out runs/rm-helpful
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.runs import Ledger, run_stage
from recipes.config import option, parse
from recipes.pipeline.inputs import closing_line, content_key, section


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = option(help="run, Hugging Face directory or hub id of the backbone (decoder or encoder)")
    data: str = option(help="comparisons (prompt, chosen, rejected): file, directory or hub id")
    out: str = option("runs/reward-model", help="run directory to write")
    objective: str | None = option(None, help="keep only rows of this objective, where rows carry one")
    held_out: float = option(0.1, help="share of the prompts kept for validation accuracy; 0 for none")
    limit: int | None = option(None, help="read only the first rows")
    max_steps: int | None = option(None, help="stop after so many optimizer steps")
    seed: int | None = option(None, help="seed of the new head, the order of rows and dropout")
    cleaning: dict[str, Any] = option({}, help="keys of align.data.CleanConfig")
    training: dict[str, Any] = option({}, help="keys of align.training.reward_model.RewardModelConfig")


def resolve(config: Config, *, where: str) -> dict[str, Any]:
    """The library configs of this recipe's sections, checked."""
    from align.data import CleanConfig
    from align.training.reward_model import RewardModelConfig

    flags = {"max_steps": config.max_steps, "seed": config.seed}
    return {
        "cleaning": section(CleanConfig, config.cleaning, where=where, name="cleaning"),
        "training": section(RewardModelConfig, config.training, where=where, name="training", **flags),
    }


def load(config: Config, *, cleaning: Any) -> tuple[dict[str, list[dict[str, Any]]], Counter[str]]:
    """({"train", "validation"} -> rows, drops by reason): one objective, cleaned, no prompt on both sides."""
    from align.data import clean_comparisons, load_comparisons, split_by_prompt
    from align.errors import UserError

    drops = Counter[str]()
    rows = load_comparisons(config.data, limit=config.limit, drops=drops)
    if config.objective is not None:
        rows = [row for row in rows if row.get("objective") == config.objective]
        if not rows:
            raise UserError(
                f"{config.data}: no row has objective {config.objective!r}; leave --objective out or mend it"
            )
    kept, dropped = clean_comparisons(rows, cleaning)
    drops.update(dropped)
    if not config.held_out:
        return {"train": kept, "validation": []}, drops
    shares = {"train": 1 - config.held_out, "validation": config.held_out}
    return split_by_prompt(kept, fractions=shares, seed=config.seed or 0), drops


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align reward-model", about=__doc__ or "")
    settings = resolve(config, where=where)
    from align.runs import model_dir

    model = model_dir(config.model)
    parts, drops = load(config, cleaning=settings["cleaning"])

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.training.reward_model import train_reward_model

        metrics = train_reward_model(
            settings["training"],
            model=model,
            rows=parts["train"],
            validation=parts["validation"] or None,
            out=folder,
            ledger=ledger,
        )
        return {"rows": {name: len(rows) for name, rows in parts.items()}, "dropped": dict(drops), **metrics}

    choices = {"objective": config.objective, "held_out": config.held_out, "limit": config.limit}
    inputs = {"model": content_key(config.model), "data": content_key(config.data)}
    run = run_stage(config.out, stage="reward-model", config={**settings, **choices}, body=body, inputs=inputs)
    print(closing_line(run))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("reward-model")
