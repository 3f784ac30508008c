"""Report: summary.json -> one self-contained report.html, without any model.

align report runs/demo
align report runs/demo/summary.json --out report.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.config import option, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    run: str = option(help="run directory that holds summary.json, or the file itself")
    out: str | None = option(None, help="file to write (default: report.html beside the summary)")


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align report", about=__doc__ or "", positional=("run",))
    from evals.report import write_report
    from recipes.pipeline.numbers import check_target

    source = Path(config.run)
    summary = source if source.is_file() else source / "summary.json"
    if config.out:
        check_target(Path(config.out), inputs=[summary], where=where)
    print(write_report(summary, config.out or summary.with_name("report.html")))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("report")
