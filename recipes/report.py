"""Report: summary.json -> one self-contained report.html, without any model.

align report runs/demo
python recipes/report.py runs/demo/summary.json --out report.html
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config import option, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    run: str = option(help="run directory that holds summary.json, or the file itself")
    out: str | None = option(None, help="file to write (default: report.html beside the summary)")


def ledger_table(stages: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Stage -> ledger, and `total`: sums, but of memory the largest."""
    names = {name for ledger in stages.values() for name in ledger}
    total = {
        name: (max if name == "peak_memory_mb" else sum)(ledger.get(name, 0) for ledger in stages.values())
        for name in sorted(names)
    }
    return {**{stage: dict(ledger) for stage, ledger in stages.items()}, "total": total}


def provenance(config: Any, *, seed: int) -> dict[str, Any]:
    """Where the numbers come from: config, versions, seed, commit, platform, threads."""
    from align.runs import environment, jsonable

    facts = environment()
    return {
        "config": jsonable(config),
        "versions": {"python": facts["python"], **facts["versions"]},
        "seed": seed,
        "commit": commit(),
        "platform": facts["platform"],
        "threads": facts["threads"],
    }


def commit() -> str | None:
    """The repository's commit, with "+changes" when files differ from it; None outside a repository."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed from a wheel: another repository's commit would be a false witness
        return None
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes else "")


def main(argv: Sequence[str] | None = None) -> int:
    config, _ = parse(Config, argv, program="align report", about=__doc__ or "", positional=("run",))
    from evals.report import write_report

    source = Path(config.run)
    summary = source if source.is_file() else source / "summary.json"
    print(write_report(summary, config.out or summary.with_name("report.html")))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("report")
