"""Pretraining: text -> cleaned, packed tokens -> a causal language model by maximum likelihood.

align pretrain --data corpus.jsonl.gz --out runs/pretrain
align pretrain --config recipes/configs/pretrain.yaml --data corpus.jsonl.gz --out runs/pretrain
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.data.sources import text_rows
from align.runs import Ledger, Metrics, model_dir, run_stage
from recipes.config import option, parse, section_field, with_flags
from recipes.pipeline.inputs import closing_line, content_key

if TYPE_CHECKING:
    from align.data import CleanConfig
    from align.training.pretrain import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = option(help="rows with a text column: file, directory or hub id")
    out: str = option("runs/pretrain", help="run directory to write")
    model: str | None = option(
        None, help="continue from this run, Hugging Face directory or hub id (default: from scratch)"
    )
    tokenizer: str | None = option(None, help="run, directory or hub id of a tokenizer (default: trained on the text)")
    held_out: float = option(0.05, help="share of the texts kept for validation bits per byte; 0 for none")
    limit: int | None = option(None, help="read only the first rows")
    max_steps: int | None = option(None, help="stop after so many optimizer steps")
    seed: int | None = option(None, help="seed of the weights, the order of blocks and dropout")
    cleaning: CleanConfig = section_field("align.data:CleanConfig", help="keys of align.data.CleanConfig")
    training: PretrainConfig = section_field(
        "align.training.pretrain:PretrainConfig",
        help="keys of align.training.pretrain.PretrainConfig; `model` holds the shape",
    )


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align pretrain", about=__doc__ or "")
    training = with_flags(config.training, max_steps=config.max_steps, seed=config.seed, start=config.model)
    checks.shares(config, "held_out", place=f"{where}: ")
    from align.data import clean_texts, held_out_parts

    for source in filter(None, (config.model, config.tokenizer)):
        model_dir(source)
    rows = text_rows(config.data, limit=config.limit)

    def body(folder: Path, ledger: Ledger) -> Metrics:
        from align.training.pretrain import pretrain

        kept, drops = clean_texts(rows, config.cleaning)
        parts = held_out_parts(kept, share=config.held_out, seed=config.seed or 0, key="text")
        metrics = pretrain(
            training, rows=parts["train"], validation=parts["validation"] or None, tokenizer=config.tokenizer,
            out=folder, ledger=ledger,
        )  # fmt: skip
        return {"rows": {name: len(part) for name, part in parts.items()}, "dropped": dict(drops), **metrics}

    sources = {"data": config.data, "model": config.model, "tokenizer": config.tokenizer}
    inputs = {name: content_key(source) for name, source in sources.items() if source is not None}
    keyed = {"cleaning": config.cleaning, "training": training, "held_out": config.held_out, "limit": config.limit}
    print(closing_line(run_stage(config.out, stage="pretrain", config=keyed, body=body, inputs=inputs)))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("pretrain")
