"""Real preference data end to end: text -> pretraining -> SFT -> reward models -> methods -> trade-offs -> report.

align hh --data ../shared/data
align hh --data Anthropic/hh-rlhf --model HuggingFaceTB/SmolLM2-135M --out runs/hh-smollm
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recipes.config import parse
from recipes.pipeline.provenance import publish
from recipes.pipeline.tasks import run_tasks
from recipes.real.plan import Config, make_plan

DEFAULTS = Path(__file__).parents[1] / "configs" / "hh.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align hh", about=__doc__ or "", defaults=DEFAULTS)
    from align.runs import model_dir
    from recipes.real.sections import check

    check(config, where=where)

    if config.model is not None:
        model_dir(config.model)  # a folder without config or tokenizer is told now
    out = Path(config.out)
    plan = make_plan(config, out)
    run_tasks(plan.tasks, workers=config.workers, label="hh")
    from recipes.real.summary import closing_words, summarise

    summary = summarise(config, plan=plan, out=out)
    publish(summary, out=out, words=closing_words(summary))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("hh")
