"""From one file of scored samples to the over-optimisation curve of best-of-n: gains of proxy and gold, fit, peak.

    align suites POLICY --suite S --measure rewards --objectives proxy=runs/rm gold=runs/judge --samples 16 \\
        --temperature 1 --export jsonl --out OUT
    align over-optimisation OUT/S.jsonl --proxy rewards.proxy.plain --gold rewards.gold.plain

Any JSON lines with one row per sample serve: `--item` names the column of its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align import checks
from evals.items import NO_SHIFT, Json
from recipes.config import option, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    file: str = option(help="JSON lines (or Parquet), one row per sample")
    proxy: str = option(help="column of the score that best-of-n maximises")
    gold: str = option(help="column of the score that counts")
    item: str = option("item", help="column with the id of the prompt that a sample answers")
    shift: str = option(NO_SHIFT, help="rows of this shift, where the file has a column shift")
    max_missing: float = option(0.05, help="largest share of samples without a score")
    seed: int = option(0, help="of the bootstrap over prompts")
    out: str | None = option(None, help="file for the numbers as JSON")


def lines_of(table: Json) -> list[str]:
    """What the terminal shows."""

    def ends(number: Json) -> str:
        return "" if number["ci"] is None else f" [{number['ci'][0]:+.3f}, {number['ci'][1]:+.3f}]"

    lines = [f"{'n':>5} {'KL <=':>7} {'d':>6}  gold gain                 proxy gain  proxy minus gold"]
    for p in table["points"]:
        gold = f"{p['gold']['value']:+.3f}{ends(p['gold'])}"
        gap = f"{p['gap']['value']:+.3f}{ends(p['gap'])}"
        lines.append(f"{p['n']:>5} {p['kl']:>7.3f} {p['d']:>6.3f}  {gold:25} {p['proxy']:>+10.3f}  {gap}")
    if table["fit"] is None:
        return [*lines, f"no fit: {table['fit_reason']}"]
    fit = table["fit"]
    words = f"fit {fit['form']}: alpha {fit['alpha']['value']:.3f}{ends(fit['alpha'])}, beta {fit['beta']['value']:.3f}"
    lines.append(words + ends(fit["beta"]))
    if fit["peak"] is None:
        return [*lines, "no peak: over this range the gold reward does not turn"]
    beyond = ", beyond the curve: an extrapolation" if fit["peak"]["beyond_the_curve"] else ""
    return [*lines, f"gold peaks at d = {fit['peak']['value']:.3f}{ends(fit['peak'])}{beyond}"]


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align over-optimisation", about=__doc__ or "", positional=("file",))
    checks.shares(config, "max_missing", place=f"{where}: ")
    checks.at_least(0, config, "seed", place=f"{where}: ")
    from align.data.load import iterate_rows
    from evals.tables.overoptimisation import curve_table, scores_of
    from recipes.pipeline.numbers import check_target, write_numbers

    if config.out:
        check_target(Path(config.out), inputs=[config.file], where=where)
    rows = iterate_rows(config.file, columns=(config.item, config.proxy, config.gold))
    proxy, gold, counts = scores_of(
        rows, item=config.item, proxy=config.proxy, gold=config.gold, shift=config.shift,
        max_missing=config.max_missing,
    )  # fmt: skip
    table = {**counts, "seed": config.seed, **curve_table(proxy, gold_PN=gold, seed=config.seed)}
    print("\n".join(lines_of(table)))
    lost = f"{counts['missing']} missing, {counts['left_out']} left out to make samples equal"
    print(f"{counts['prompts']} prompts x {counts['samples']} samples ({lost})")
    print(f"intervals: 95 % over prompts, seed {config.seed}")
    if config.out:
        write_numbers(Path(config.out), table, kind="over-optimisation", config=config, seed=config.seed)
    return 0


if __name__ == "__main__":
    from recipes.cli import script

    script("over-optimisation")
