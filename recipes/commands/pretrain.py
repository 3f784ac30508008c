"""Pretraining: text -> cleaned, packed tokens -> a causal language model by maximum likelihood.

align pretrain --data corpus.jsonl.gz --out runs/pretrain
python -m recipes.commands.pretrain --config recipes/configs/pretrain.yaml --data corpus.jsonl.gz --out runs/pretrain
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.runs import Ledger, run_stage
from recipes.config import option, parse
from recipes.pipeline.inputs import closing_line, content_key, section, text_rows


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
    cleaning: dict[str, Any] = option({}, help="keys of align.data.CleanConfig")
    training: dict[str, Any] = option(
        {}, help="keys of align.training.pretrain.PretrainConfig; `model` holds the shape"
    )


def resolve(config: Config, *, where: str) -> dict[str, Any]:
    """The library configs of this recipe's sections, checked."""
    from align.data import CleanConfig
    from align.training.pretrain import PretrainConfig

    flags = {"max_steps": config.max_steps, "seed": config.seed, "start": config.model}
    return {
        "cleaning": section(CleanConfig, config.cleaning, where=where, name="cleaning"),
        "training": section(PretrainConfig, config.training, where=where, name="training", **flags),
    }


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align pretrain", about=__doc__ or "")
    settings = resolve(config, where=where)
    from align.data import clean_texts, split_by_prompt
    from align.runs import model_dir

    for source in filter(None, (config.model, config.tokenizer)):
        model_dir(source)
    rows = text_rows(config.data, limit=config.limit)

    def body(folder: Path, ledger: Ledger) -> Mapping[str, Any]:
        from align.training.pretrain import pretrain

        kept, drops = clean_texts(rows, settings["cleaning"])
        parts: dict[str, Any] = {"train": kept, "validation": []}
        if config.held_out:
            shares = {"train": 1 - config.held_out, "validation": config.held_out}
            parts = split_by_prompt(kept, fractions=shares, seed=config.seed or 0, key="text")
        metrics = pretrain(
            settings["training"],
            rows=parts["train"],
            validation=parts["validation"] or None,
            tokenizer=config.tokenizer,
            out=folder,
            ledger=ledger,
        )
        return {"rows": {name: len(part) for name, part in parts.items()}, "dropped": dict(drops), **metrics}

    sources = {"data": config.data, "model": config.model, "tokenizer": config.tokenizer}
    inputs = {name: content_key(source) for name, source in sources.items() if source is not None}
    choices = {"held_out": config.held_out, "limit": config.limit}
    run = run_stage(config.out, stage="pretrain", config={**settings, **choices}, body=body, inputs=inputs)
    print(closing_line(run))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("pretrain")
