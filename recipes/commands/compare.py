"""Policies on the same items: failure rates of each, who is told apart, who is best, undominated; two in detail.

align compare runs/before runs/after runs/third
align compare runs/dpo runs/rlhf --metrics over_refusal asr@any --fail-if "asr@any > 0.1"

A folder is one that `align suites MODEL --suite ...` wrote, or holds several of them: then they are one family, as the
points of a front. All must have been asked the same items under the same shifts. Of two policies the report also has
every shift: second minus first, with Holm's correction. Exit code 3 where a condition of --fail-if holds of a policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from align import checks
from align.errors import UserError
from evals.items import Json
from evals.report.suite_summary import SETTINGS, read_summary, unlike
from recipes.config import option, parse

if TYPE_CHECKING:
    from evals.tables.outcomes import Outcome

FAILED = 3  # exit code


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[str, ...] = option(help="folders written by align suites, or folders of such folders (families)")
    metrics: tuple[str, ...] = option(
        ("over_refusal", "asr"), help="two rates, across and up: asr or over_refusal, also with @SHIFT or @any"
    )
    fail_if: tuple[str, ...] = option((), help="conditions such as 'asr@any > 0.1': exit code 3 where one holds")
    allow: tuple[str, ...] = option((), help=f"settings that may differ between the runs: {', '.join(SETTINGS)}")
    max_missing: float = option(0.05, help="a side that lacks a larger share of its verdicts is refused")
    out: str | None = option(None, help="file for the numbers (default: comparison.json in the last folder)")
    title: str = option("Policies compared", help="title of the report")


@dataclass(frozen=True)
class Policy:
    """One evaluation: its folder, the family that it is a point of (empty for none), and what it found."""

    folder: Path
    family: str
    summary: Json
    suites: Mapping[str, list[Outcome]]

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all suites, the items named by suite."""
        return [
            replace(one, item=f"{suite}/{one.item}", cluster=f"{suite}/{one.cluster}")
            for suite, found in self.suites.items() for one in found
        ]  # fmt: skip


def policies_of(runs: Sequence[str], *, where: str) -> dict[str, Policy]:
    """Name -> evaluation, by the last parts of their paths that tell all apart; UserError where one is given twice."""
    from evals.tables.suite_outcomes import read_outcomes

    family_of: dict[Path, str] = {}
    for run in runs:
        folder = Path(run)
        points = sorted(file.parent for file in folder.rglob("outcomes.jsonl"))
        single = folder in points or not points
        for point in [folder] if single else points:
            if point in family_of:
                raise UserError(f"{where}: {point} is given twice; give each evaluation once")
            family_of[point] = "" if single else folder.name
    depths = range(1, 1 + max(len(point.parts) for point in family_of))
    by_depth = ({"/".join(point.parts[-depth:]): point for point in family_of} for depth in depths)
    named = next(names for names in by_depth if len(names) == len(family_of))
    return {
        name: Policy(point, family_of[point], read_summary(str(point)), read_outcomes(point))
        for name, point in named.items()
    }


def check_suites(policies: Mapping[str, Policy], *, where: str) -> None:
    """UserError where a suite was not asked of all."""
    (first, one), *others = policies.items()
    for name, other in others:
        if set(other.suites) != set(one.suites):
            odd = sorted(set(one.suites) ^ set(other.suites))[0]
            raise UserError(f"{where}: suite {odd!r} was asked of one of {first} and {name} only; ask both")


def allowed(policies: Mapping[str, Policy], *, names: Sequence[str], where: str) -> Json:
    """What differs in how the policies were measured, all of it named by --allow; UserError otherwise, in one line."""
    for name in names:
        if name not in SETTINGS:
            raise UserError(f"{where}: --allow {name} is no setting; choose from {', '.join(SETTINGS)}")
    differing = unlike({name: policy.summary for name, policy in policies.items()})
    refused = {setting: values for setting, values in differing.items() if setting not in names}
    for setting, values in refused.items():
        (first, one), *others = values.items()
        second, other = next((name, value) for name, value in others if value != one)
        raise UserError(
            f"{where}: {first} and {second} differ in {setting} ({one} | {other}); measure both alike, or add "
            f"--allow {' '.join(refused)}"
        )
    return differing


def lines_of(summary: Json) -> list[str]:
    """What the terminal shows: a line for each policy, and of two one for each suite, shift and side."""
    from evals.report.suite_words import pair

    lines = []
    for name, entry in summary["policies"].items():
        rates = [f"{label} {pair(rate)} {rate.get('letters', '')}".rstrip() for label, rate in entry["metrics"].items()]
        best = "  undominated" if entry["undominated"] else ""
        lines.append(f"{name}: {', '.join(rates)}{best}")
    for suite, table in summary["suites"].items():
        lines.append(f"{suite}: second minus first, {table['comparisons']} comparisons (Holm)")
        for shift, sides in table["shifts"].items():
            for side, entry in sides.items():
                change = entry["change"]
                if change is None:
                    lines.append(f"  {shift:28} {side:8} first {pair(entry['first'])}, second {pair(entry['second'])}")
                    continue
                low, high = change["ci"] or (float("nan"), float("nan"))
                interval = f"[{low:+.3f}, {high:+.3f}]"
                lines.append(
                    f"  {shift:28} {side:8} {change['value']:+.3f} {interval}  p {change['p']:.3g} "
                    f"(Holm {change['p_holm']:.3g}), n {change['n']}"
                )
    return lines


def compared(policies: Mapping[str, Policy], config: Config, *, where: str) -> Json:
    """All numbers of the comparison; UserError where the policies cannot be compared."""
    from evals.tables.outcomes import compare_outcomes
    from evals.tables.policies import Condition, Metric, policy_table

    conditions = [Condition.parse(text) for text in config.fail_if]
    metrics = [Metric.parse(text) for text in config.metrics]
    if len({metric.label for metric in metrics}) != 2 or len(metrics) != 2:
        raise UserError(f"{where}: --metrics takes two different rates, across and up, not {' '.join(config.metrics)}")
    if len(policies) < 2 and not conditions:
        raise UserError(f"{where}: give two folders or more, or one with --fail-if")
    check_suites(policies, where=where)
    differing = allowed(policies, names=config.allow, where=where)
    outcomes = {name: policy.outcomes for name, policy in policies.items()}
    table = policy_table(outcomes, metrics=metrics, max_missing=config.max_missing)
    for name, policy in policies.items():
        facts = {key: policy.summary.get(key, "unknown") for key in ("model", "fingerprint")}
        table["policies"][name] |= {"folder": str(policy.folder), "family": policy.family, **facts}
    failed = []
    for text, condition in zip(config.fail_if, conditions, strict=True):
        for name, found in outcomes.items():
            rate = condition.metric.rate(found, policy=name, max_missing=config.max_missing)
            if condition.met(rate):
                failed.append({"condition": text, "policy": name, "rate": rate})
    two = [policy.suites for policy in policies.values()] if len(policies) == 2 else []
    suites = {s: compare_outcomes(two[0][s], two[1][s], max_missing=config.max_missing) for s in two[0]} if two else {}
    shifts = {name: facts for policy in policies.values() for name, facts in policy.summary["shifts"].items()}
    asked = {"allowed": differing, "fail_if": list(config.fail_if), "failed": failed}
    return {**table, "suites": suites, "shifts": shifts, **asked}


def main(argv: Sequence[str] | None = None) -> int:
    config, where = parse(Config, argv, program="align compare", about=__doc__ or "", positional=("runs",))
    checks.shares(config, "max_missing", place=f"{where}: ")
    from align.runs import write_json
    from align.runs.derived import keep_strangers
    from evals.report import write_report
    from evals.report.suite_words import policy_findings
    from recipes.pipeline.numbers import check_target, files_of
    from recipes.pipeline.provenance import command_line, provenance

    if not config.runs:
        raise UserError(f"{where}: no folder is given; give two or more, or one with --fail-if")
    target = Path(config.out) if config.out else Path(config.runs[-1]) / "comparison.json"
    if target.suffix != ".json":
        raise UserError(f"{where}: --out {target} must end in .json; the report goes beside it, ending in .html")
    html = target.with_suffix(".html")
    policies = policies_of(config.runs, where=where)
    numbers = compared(policies, config, where=where)
    for file in (target, html):
        check_target(file, inputs=files_of(policy.folder for policy in policies.values()), where=where)
    summary = {
        "title": config.title, "kind": "comparison", **numbers,
        "command": command_line("align compare", argv), "provenance": provenance(config, seed=0),
    }  # fmt: skip
    keep_strangers(target, html, like=summary)
    write_json(target, summary)
    page = write_report(target, html)
    print("\n".join([*lines_of(summary), *policy_findings(summary)]))
    print(f"report: {page}\nnumbers: {target}")
    return FAILED if summary["failed"] else 0


if __name__ == "__main__":
    from recipes.cli import script

    script("compare")
