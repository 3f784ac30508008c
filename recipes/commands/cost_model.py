"""A cost model: a model + comparisons with safety labels -> a one-output scorer whose sign says safe or unsafe.

align cost-model --model runs/sft --data safety.jsonl --out runs/cost

Rows have `prompt`, `chosen` (the safer reply), `rejected`, `safe_chosen` and `safe_rejected` (true or false). As an
objective, `cost=runs/cost` is minus the cost, so that higher is safer: thresholds=none,0 asks for a cost of at most 0.
"""

from __future__ import annotations

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
from recipes.pipeline.objectives import COST_MODEL

if TYPE_CHECKING:
    from align.data import CleanConfig
    from align.data.load import Row
    from align.training.cost_model import CostModelConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = option(help="run, Hugging Face directory or hub id of the backbone (decoder or encoder)")
    data: str = option(help="comparisons with safe_chosen and safe_rejected: file, directory or hub id")
    out: str = option("runs/cost-model", help="run directory to write")
    held_out: float = option(0.1, help="share of the prompts kept for validation accuracy; 0 for none")
    limit: int | None = option(None, help="read only the first rows")
    max_steps: int | None = option(None, help="stop after so many optimizer steps")
    seed: int | None = option(None, help="seed of the new head, the order of rows and dropout")
    cleaning: CleanConfig = section_field("align.data:CleanConfig", help="keys of align.data.CleanConfig")
    training: CostModelConfig = section_field(
        "align.training.cost_model:CostModelConfig", help="keys of align.training.cost_model.CostModelConfig"
    )


def load(config: Config) -> tuple[Mapping[str, Sequence[Row]], Counter[str]]:
    """({"train", "validation"} -> rows, drops by reason): cleaned, with their labels, no prompt on both sides.

    UserError for a row without a label, naming its place.
    """
    from align.data import clean_comparisons, held_out_parts
    from align.data.hh import comparison
    from align.data.load import iterate_rows
    from align.data.sources import truth
    from align.training.cost_model import LABELS

    drops, rows = Counter[str](), list[dict[str, object]]()
    for place, row in iterate_rows(config.data, columns=("chosen", "rejected", *LABELS), limit=config.limit):
        pair, reason = comparison(row, place=place)
        if pair is None:
            drops[reason] += 1
            continue
        labels = {name: truth(row[name]) for name in LABELS}
        for name, label in labels.items():
            if label is None:
                raise UserError(f"{place}: {name} is {row[name]!r}; say true or false")
        rows.append({**pair, **labels})
    kept, dropped = clean_comparisons(rows, config.cleaning)
    drops.update(dropped)
    return held_out_parts(kept, share=config.held_out, seed=config.seed or 0), drops


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align cost-model", about=__doc__ or "")
    training = with_flags(config.training, max_steps=config.max_steps, seed=config.seed)
    checks.shares(config, "held_out", place=f"{where}: ")
    model = model_dir(config.model)
    parts, drops = load(config)

    def body(folder: Path, ledger: Ledger) -> Metrics:
        from align.training.cost_model import train_cost_model

        metrics = train_cost_model(
            training, model=model, rows=parts["train"], validation=parts["validation"] or None, out=folder,
            ledger=ledger,
        )  # fmt: skip
        return {"rows": {name: len(rows) for name, rows in parts.items()}, "dropped": dict(drops), **metrics}

    keyed = {"cleaning": config.cleaning, "training": training, "held_out": config.held_out, "limit": config.limit}
    inputs = {"model": content_key(config.model), "data": content_key(config.data)}
    print(closing_line(run_stage(config.out, stage=COST_MODEL, config=keyed, body=body, inputs=inputs)))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("cost-model")
