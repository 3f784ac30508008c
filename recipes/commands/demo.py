"""The demo, on the testbed: text -> pretraining -> SFT -> reward models -> methods -> exact trade-offs -> report.

align demo [--seed 0]
python -m recipes.commands.demo --config recipes/configs/demo.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.config import parse
from recipes.pipeline.provenance import publish
from recipes.pipeline.tasks import run_tasks
from recipes.testbed.plan import Config, check, destination, make_plan

DEFAULTS = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align demo", about=__doc__ or "", defaults=DEFAULTS)
    check(config, where=where)
    out = destination(config)
    plan = make_plan(config, out)
    run_tasks(plan.tasks, workers=config.workers, label="demo")
    from recipes.testbed.summary import summarise

    summary = summarise(config, plan=plan, out=out)
    publish(summary, out=out, words=_closing_words(summary))
    return 0


def _closing_words(summary: Mapping[str, Any]) -> str:
    lines = ["regret share (0 = exact optimum, 1 = reference model):"]
    for row, entry in summary["methods"].items():
        lines.append(f"  {row:<22} {entry['regret_share']:.3f}  {'passes' if entry['passes'] else 'fails'}")
    return "\n".join(lines)


if __name__ == "__main__":
    from recipes.cli import script

    script("demo")
