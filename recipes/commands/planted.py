"""Tiny models with a planted cause of failure, and the probes' view of each: what attribution is validated on.

align planted [--seeds 0 1 2] [--out runs/planted]

At graded strength: a compliance prefix that the text answers to more or less (competing), a spelling that fine-tuning
leaves out or covers in part (mismatched), one that pretraining hardly or never taught (capability), or nothing. Resumes
where it was stopped; `benchmarks/attribution/run.py` makes the page from it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from align.runs import RUN_FILE
from recipes.config import parse
from recipes.pipeline.tasks import run_calls
from recipes.testbed.planted import Config, calls_of, planted_plans

DEFAULTS = Path(__file__).parents[1] / "configs" / "planted.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align planted", about=__doc__ or "", defaults=DEFAULTS)
    plans = planted_plans(config, where=where)
    calls = calls_of(plans)
    deadline = None if config.minutes is None else time.monotonic() + 60 * config.minutes
    left = run_calls(calls, workers=config.workers, label="planted", deadline=deadline)
    if left:
        print(f"{left} of {len(calls)} stages left; the same command goes on")
    probed = [cell for every in plans.values() for plan in every for made in plan.cells.values() for cell in made]
    done = [call for call in probed if (call.out / RUN_FILE).is_file()]
    print(f"{len(done)} of {len(probed)} planted models probed: {config.out}")
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("planted")
