"""Push: a finished model with a model card (front, J, data, seeds, cost) -> a hub repository, or a folder.

align push runs/dpo --weights 0.5,0.5 --out published                              # no network
align push runs/dpo --weights 0.5,0.5 --hub me/dpo-half --evaluation runs/evaluation
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.errors import UserError
from align.preferences import parse_preference
from recipes.config import option, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = option(help="run that holds a model or a policy family, or a model directory")
    hub: str | None = option(None, help="hub repository to upload to, like me/name (made if it is not there; private)")
    out: str | None = option(None, help="folder to write instead; it must not exist")
    weights: str | None = option(None, help="the family's point, like 0.5,0.5")
    evaluation: str | None = option(None, help="run of `align evaluate` whose front stands in the card")
    dtype: str | None = option(None, help="how weights are stored: float32, bfloat16, float16 (default: as the base)")
    public: bool = option(False, help="make a new hub repository public")


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align push", about=__doc__ or "", positional=("model",))
    if (config.hub is None) == (config.out is None):
        raise UserError(f"{where}: give either --hub NAME/REPOSITORY or --out FOLDER")
    preference = None if config.weights is None else parse_preference(config.weights)
    from align.policies.export import export
    from evals.report.model_card import default_name, model_card
    from evals.report.upload import upload

    summary = None if config.evaluation is None else Path(config.evaluation) / "summary.json"
    name = config.hub or default_name(config.model, preference)
    card = model_card(config.model, name=name, preference=preference, summary=summary)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(config.out) if config.out else Path(scratch) / "model"
        export(config.model, preference=preference, out=folder, dtype=config.dtype)
        (folder / "README.md").write_text(card, encoding="utf-8")
        print(folder if config.hub is None else upload(folder, config.hub, private=not config.public))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("push")
