"""ASR@N: how often at least one of N draws of a prompt is a failure, measured for few draws and extrapolated to many.

align asr-at-n MODEL --suite xstest --data ../shared/data --shift best_of_n --samples 8 --n 32 128
align asr-at-n MODEL --suite my_prompts.jsonl --judge rules llm:JUDGE@http://HOST/v1

The plain prompt, drawn as often, is the control: what the shift adds to drawing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from align.errors import UserError
from evals.items import Json
from recipes.commands import suites
from recipes.commands.asked import Asked
from recipes.config import option, parse


@dataclass(frozen=True, kw_only=True)
class Config(Asked):
    shift: tuple[str, ...] = option(("best_of_n",), help="shifts by name that draw anew for each sample, or none")
    samples: int = option(8, help="draws of each prompt")
    temperature: float = option(1.0, help="of the policy's answers")
    n: tuple[int, ...] = option((), help="numbers of draws to extrapolate to (default: 4 and 16 times the samples)")
    out: str = option("runs/asr-at-n", help="folder of the cells, the numbers and the report")


def lines_of(table: Json) -> list[str]:
    """What the terminal shows."""
    from evals.report.words import interval, share

    lines = []
    for suite, shifts in table.items():
        for shift, sides in shifts.items():
            for side, found in sides.items():
                words = "at least one answer" if side == "harmful" else "at least one refusal"
                lines.append(f"{suite}, {side}, {shift}: {words} in N draws, {found['base_items']} base items")
                for n, rate in found["measured"].items():
                    lines.append(f"  N = {n:>5}  {share(rate['value'])} {interval(rate['ci'])}")
                for n, far in found["beyond"].items():
                    fit = (
                        f"{share(far['value'])} {interval(far['ci'])} by the beta fit"
                        if "why" not in far
                        else far["why"]
                    )
                    lines.append(f"  N = {n:>5}  {fit}; of any shape {interval(far['bounds'])}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align asr-at-n", about=__doc__ or "", positional=("model",))
    asked = config.options(out=config.out, title="At least one of N draws")
    options = replace(asked, shift=config.shift, samples=config.samples, temperature=config.temperature)
    suites.check(options, where=where)
    if config.samples < 2:
        raise UserError(
            f"{where}: {config.samples} draw of a prompt says nothing of more draws; give --samples 2 or more"
        )
    if any(n < 1 for n in config.n):
        raise UserError(f"{where}: --n takes numbers of draws, each at least 1, not {list(config.n)}")
    from evals.measure.evaluation import chosen_suites
    from evals.shifts.requested import check_shifts
    from evals.tables.safety.at_n import at_n_table
    from evals.tables.suite_outcomes import outcomes_of
    from recipes.pipeline.numbers import write_numbers
    from recipes.pipeline.provenance import command_line

    check_shifts(config.shift, model=None)
    chosen = chosen_suites(config.suite, data=config.data, limit=config.limit, measures=("completion", "verdict"))
    results = suites.evaluate(
        config.model, chosen, options=options, out=Path(config.out), command=command_line("align asr-at-n", argv)
    )
    ns = config.n or (4 * config.samples, 16 * config.samples)
    table = {name: at_n_table(outcomes_of(one.cells), ns=ns) for name, one in results.items()}
    print("\n".join(lines_of(table)))
    write_numbers(Path(config.out) / "asr_at_n.json", {"suites": table}, kind="asr-at-n", config=config, seed=0)
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("asr-at-n")
