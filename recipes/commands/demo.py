"""The demo, on the testbed: text -> pretraining -> SFT -> reward models -> methods -> exact trade-offs -> report.

align demo [--seed 0]
align demo --config recipes/configs/demo.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recipes.config import parse
from recipes.pipeline.plan import plan
from recipes.pipeline.provenance import publish
from recipes.pipeline.rows import Row, read_rows
from recipes.pipeline.tasks import run_calls
from recipes.testbed.demo import Config, setting_of

DEFAULTS = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align demo", about=__doc__ or "", defaults=DEFAULTS)
    setting = setting_of(config, where=where)
    made = plan(setting, read_rows(config.rows, where=where, kind=Row))
    run_calls(made.calls, workers=config.workers, label="demo")
    from recipes.testbed.demo_summary import demo_summary

    summary = demo_summary(config, made, setting)
    lines = ["regret share (0 = exact optimum, 1 = reference model):"]
    for row, entry in summary.methods.items():
        lines.append(f"  {row:<22} {entry['regret_share']:.3f}  {'passes' if entry['passes'] else 'fails'}")
    publish(summary.jsonable(), out=setting.out, words="\n".join(lines))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("demo")
