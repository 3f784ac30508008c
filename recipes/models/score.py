"""Score: rows (prompt, completion) + objectives -> the same rows with their scores, as JSON lines.

align score answers.jsonl --objectives helpful=runs/rm-helpful length=length --out scores.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.config import option, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = option(help="rows with a prompt and a completion: file, directory or hub id")
    objectives: tuple[str | Mapping[str, object], ...] = option(
        help="NAME=RUN of a reward model, NAME=KIND of a rule, or NAME=KIND:... (docs/objectives.md), one or more"
    )
    out: str = option(help="file to write, JSON lines: each row with `scores` (null: the objective does not apply)")
    limit: int | None = option(None, help="read only the first rows")


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align score", about=__doc__ or "", positional=("data",))
    from evals.measure.row_scores import means, rows_to_score, score_rows, write_scores
    from recipes.pipeline.numbers import check_target
    from recipes.pipeline.objectives import answers_beside, load_objectives

    target = Path(config.out)
    check_target(target, inputs=[config.data], where=where)
    rows = rows_to_score(config.data, limit=config.limit)
    scored = score_rows(rows, load_objectives(config.objectives, folder=answers_beside(target)))
    write_scores(target, scored)
    print(f"{target}: {len(scored)} rows; " + "; ".join(f"{name} {text}" for name, text in means(scored).items()))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("score")
