"""Tiny models with a planted mechanism of failure, and the probes' view of each: what attribution is validated on.

align planted [--seeds 0 1 2] [--out runs/planted]

Weights in conflict behind a compliance prefix that fine-tuning covers (competing), a spelling left out of fine-tuning
(mismatched), the prefix in that spelling (both), a spelling that pretraining never taught (capability). Resumes where
it was stopped; `benchmarks/attribution/run.py` makes the page from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recipes.config import parse
from recipes.pipeline.tasks import run_tasks
from recipes.testbed.planted_plan import Config, check, make_plan

DEFAULTS = Path(__file__).parents[1] / "configs" / "planted.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    import time

    config, where = parse(Config, argv, program="align planted", about=__doc__ or "", defaults=DEFAULTS)
    check(config, where=where)
    tasks, plants = make_plan(config)
    deadline = None if config.minutes is None else time.monotonic() + 60 * config.minutes
    left = run_tasks(tasks, workers=config.workers, label="planted", deadline=deadline)
    if left:
        print(f"{left} of {len(tasks)} stages left; the same command goes on")
    done = [plant for plant in plants if (plant.probes / "signals.json").is_file()]
    print(f"{len(done)} of {len(plants)} planted models probed: {config.out}")
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("planted")
