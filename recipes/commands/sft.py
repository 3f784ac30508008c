"""Supervised fine-tuning: a model + demonstrations -> the reference policy (loss on completions only).

align sft --model runs/pretrain --data demonstrations.jsonl --out runs/sft
python -m recipes.commands.sft --config recipes/configs/sft.yaml --out runs/sft --max-steps 200
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.runs import Ledger, run_stage
from recipes.config import option, parse
from recipes.pipeline.inputs import closing_line, content_key, demonstrations, section


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = option(help="run, Hugging Face directory or hub id of the model to start from")
    data: str = option(
        help="demonstrations (prompt, completion) or comparisons (the chosen side): file, directory, hub id"
    )
    out: str = option("runs/sft", help="run directory to write")
    limit: int | None = option(None, help="read only the first rows")
    max_steps: int | None = option(None, help="stop after so many optimizer steps")
    seed: int | None = option(None, help="seed of the order of rows and of dropout")
    training: dict[str, Any] = option({}, help="keys of align.training.sft.SFTConfig_")


def resolve(config: Config, *, where: str) -> dict[str, Any]:
    """The library configs of this recipe's sections, checked."""
    from align.training.sft import SFTConfig_

    flags = {"max_steps": config.max_steps, "seed": config.seed}
    return {"training": section(SFTConfig_, config.training, where=where, name="training", **flags)}


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align sft", about=__doc__ or "")
    settings = resolve(config, where=where)
    from align.runs import model_dir

    model, drops = model_dir(config.model), Counter[str]()
    rows = demonstrations(config.data, limit=config.limit, drops=drops)

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.training.sft import sft

        metrics = sft(settings["training"], model=model, rows=rows, out=folder, ledger=ledger)
        return {"rows": len(rows), "dropped": dict(drops), **metrics}

    inputs = {"model": content_key(config.model), "data": content_key(config.data)}
    run = run_stage(config.out, stage="sft", config={**settings, "limit": config.limit}, body=body, inputs=inputs)
    print(closing_line(run))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("sft")
