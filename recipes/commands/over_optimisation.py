"""From one file of scored samples to the over-optimisation curve of best-of-n: gains of proxy and gold, fit, peak.

    align evaluate POLICY --suite S --measure rewards --objectives proxy=runs/rm gold=runs/judge --samples 16 \\
        --temperature 1 --export jsonl --out OUT
    python -m recipes.commands.over_optimisation OUT/S.jsonl --proxy rewards.proxy.plain --gold rewards.gold.plain

Any JSON lines with one row per sample serve: `--item` names the column of its prompt.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.errors import UserError
from evals.command import told
from evals.items import NO_SHIFT
from evals.tables.overoptimisation import best_of_n_curve, fit_curve

Scores = list[list[float]]


def scores_of(
    rows: Iterable[tuple[str, Mapping[str, Any]]], *, item: str, proxy: str, gold: str, shift: str = NO_SHIFT,
    max_missing: float = 0.05,
) -> tuple[Scores, Scores, dict[str, int]]:  # fmt: skip
    """(proxy, gold) as prompts x samples, and what was counted: {prompts, samples, missing, left_out}.

    Rows of another shift are not read (a file without a column `shift` has one). A sample without both scores is
    missing; every prompt keeps as many samples as the one with the fewest has, and `left_out` counts the rest.
    UserError for a score that is no number, fewer than two samples, or more than `max_missing` missing.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    missing = total = 0
    for place, row in rows:
        if row.get("shift", shift) != shift:
            continue
        total += 1
        pair = row.get(proxy), row.get(gold)
        mine = found.setdefault(str(row[item]), [])
        if None in pair:
            missing += 1
            continue
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in pair):
            raise UserError(f"{place}: {proxy!r} and {gold!r} must be numbers, not {pair[0]!r} and {pair[1]!r}")
        if not all(math.isfinite(value) for value in pair):  # type: ignore[arg-type]
            raise UserError(f"{place}: {proxy!r} and {gold!r} must be finite, not {pair[0]!r} and {pair[1]!r}")
        mine.append((float(pair[0]), float(pair[1])))  # type: ignore[arg-type]
    if not total:
        raise UserError(f"no row has shift {shift!r}; name the one to read with --shift")
    if missing > max_missing * total:
        words = f"{missing} of {total} samples lack {proxy!r} or {gold!r}"
        raise UserError(f"{words}; measure them, or raise --max-missing")
    least = min(len(mine) for mine in found.values())
    if least < 2:
        poorest = min(found, key=lambda name: len(found[name]))
        raise UserError(f"prompt {poorest!r} has {least} scored samples; a curve needs at least 2 of every prompt")
    kept = [mine[:least] for mine in found.values()]
    counts = {
        "prompts": len(kept), "samples": least, "missing": missing,
        "left_out": sum(len(mine) - least for mine in found.values()),
    }  # fmt: skip
    return [[p for p, _ in mine] for mine in kept], [[g for _, g in mine] for mine in kept], counts


def curve_table(proxy_PN: Scores, *, gold_PN: Scores, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """`points`: n, KL bound, d, gold and proxy gain and their gap, with intervals over prompts; `fit` and its peak.

    Gains are over one sample (n = 1). `fit` is null with the reason where there are too few points for one.
    """
    curve = best_of_n_curve(proxy_PN, gold_PN=gold_PN)
    gold, gap = curve.gold(), curve.gap()
    means = curve.proxy_PM.mean(axis=0)
    points = [
        {
            "n": n, "kl": float(curve.d_M[m]) ** 2, "d": float(curve.d_M[m]), "gold": gold[m].stated,
            "proxy": float(means[m]), "gap": gap[m].stated,
        }
        for m, n in enumerate(curve.labels)
    ]  # fmt: skip
    table: dict[str, Any] = {"points": points, "gold_drop_after_its_best": curve.drop()}
    try:
        fitted = fit_curve(curve, form="best-of-n", d_min=0.0, draws=draws, seed=seed)
    except UserError as error:
        return table | {"fit": None, "fit_reason": str(error)}
    peak = None if fitted.peak is None else fitted.peak.stated | {"beyond_the_curve": fitted.peak_beyond}
    return table | {
        "fit": {"form": "R(d) = d (alpha - beta d)", "alpha": fitted.alpha.stated, "beta": fitted.beta.stated,
                "peak": peak, "points": fitted.points},
    }  # fmt: skip


def lines_of(table: Mapping[str, Any]) -> list[str]:
    """What the terminal shows."""

    def ends(found: Mapping[str, Any]) -> str:
        return "" if found["ci"] is None else f" [{found['ci'][0]:+.3f}, {found['ci'][1]:+.3f}]"

    lines = [f"{'n':>5} {'KL <=':>7} {'d':>6}  gold gain                 proxy gain  proxy minus gold"]
    for p in table["points"]:
        gold = f"{p['gold']['value']:+.3f}{ends(p['gold'])}"
        gap = f"{p['gap']['value']:+.3f}{ends(p['gap'])}"
        lines.append(f"{p['n']:>5} {p['kl']:>7.3f} {p['d']:>6.3f}  {gold:25} {p['proxy']:>+10.3f}  {gap}")
    if table["fit"] is None:
        return [*lines, f"no fit: {table['fit_reason']}"]
    fit = table["fit"]
    said = f"fit {fit['form']}: alpha {fit['alpha']['value']:.3f}{ends(fit['alpha'])}, beta {fit['beta']['value']:.3f}"
    lines.append(said + ends(fit["beta"]))
    if fit["peak"] is None:
        return [*lines, "no peak: over this range the gold reward does not turn"]
    beyond = ", beyond the curve: an extrapolation" if fit["peak"]["beyond_the_curve"] else ""
    return [*lines, f"gold peaks at d = {fit['peak']['value']:.3f}{ends(fit['peak'])}{beyond}"]


def run(argv: Sequence[str] | None = None) -> int:
    """The command; UserError for what the user can mend."""
    from align.data.load import iterate_rows

    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m recipes.commands.over_optimisation", description=about)
    parser.add_argument("file", help="JSON lines (or Parquet), one row per sample")
    parser.add_argument("--proxy", required=True, help="column of the score that best-of-n maximises")
    parser.add_argument("--gold", required=True, help="column of the score that counts")
    parser.add_argument("--item", default="item", help="column that says which prompt a sample answers (default: item)")
    parser.add_argument("--shift", default=NO_SHIFT, help="rows of this shift, where the file has a column shift")
    parser.add_argument("--max-missing", type=float, default=0.05, help="largest share of samples without a score")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap over prompts")
    parser.add_argument("--out", type=Path, help="file for the numbers as JSON")
    options = parser.parse_args(argv)
    rows = iterate_rows(options.file, columns=(options.item, options.proxy, options.gold))
    proxy, gold, counts = scores_of(
        rows, item=options.item, proxy=options.proxy, gold=options.gold, shift=options.shift,
        max_missing=options.max_missing,
    )  # fmt: skip
    table = {**counts, "seed": options.seed, **curve_table(proxy, gold_PN=gold, seed=options.seed)}
    print("\n".join(lines_of(table)))
    lost = f"{counts['missing']} missing, {counts['left_out']} left out to make samples equal"
    print(f"{counts['prompts']} prompts x {counts['samples']} samples ({lost})")
    print(f"intervals: 95 % over prompts, seed {options.seed}")
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; a user's mistake is one line on stderr and exit code 2."""
    return told(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
