"""Real preference data end to end: text -> pretraining -> SFT -> reward models -> methods -> trade-offs -> report.

align hh --data ../shared/data
align hh --data Anthropic/hh-rlhf --model HuggingFaceTB/SmolLM2-135M --out runs/hh-smollm
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.runs import model_dir
from recipes.config import parse
from recipes.pipeline.plan import plan
from recipes.pipeline.provenance import publish
from recipes.pipeline.tasks import run_calls
from recipes.real.setting import Config, setting_of

DEFAULTS = Path(__file__).parents[1] / "configs" / "hh.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align hh", about=__doc__ or "", defaults=DEFAULTS)
    setting, rows = setting_of(config, where=where)
    if config.model is not None:
        model_dir(config.model)  # a folder without config or tokenizer is an error now, not after the rows are read
    made = plan(setting, rows)
    run_calls(made.calls, workers=config.workers, label="hh")
    from recipes.real.summary import real_summary

    summary = real_summary(config, made, setting)
    lines = ["hypervolume gained over the reference model (judges' units), mean KL:"]
    for row, entry in summary.methods.items():
        interval = entry["raw_hypervolume_ci"]  # None with too few prompts
        low, high = interval if isinstance(interval, (list, tuple)) else (float("nan"), float("nan"))
        lines.append(f"  {row:<16} {entry['raw_hypervolume']:+.3f} [{low:.3f}, {high:.3f}]  {entry['kl']:.2f}")
    publish(summary.jsonable(), out=setting.out, words="\n".join(lines))
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("hh")
