"""Merge: an adapter, or a family at a preference -> an ordinary Hugging Face folder that any program loads.

align merge runs/soups --weights 0.3,0.7 --out merged
align merge runs/sft-lora --out merged --dtype bfloat16
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.preferences import parse_preference
from recipes.config import option, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = option(help="run that holds a model or a policy family, adapter or model directory, or hub id")
    out: str = option(help="folder to write; it must not exist")
    weights: str | None = option(None, help="the family's point, like 0.3,0.7")
    dtype: str | None = option(None, help="how weights are stored: float32, bfloat16, float16 (default: as the base)")


def main(argv: Sequence[str] | None = None) -> int:
    config, _ = parse(Config, argv, program="align merge", about=__doc__ or "", positional=("model",))
    preference = None if config.weights is None else parse_preference(config.weights)
    from align.policies.export import export

    print(export(config.model, preference=preference, out=Path(config.out), dtype=config.dtype))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("merge")
