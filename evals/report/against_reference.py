"""Policies against the reference on the same items, in numbers and tables: refusals, answers, rewards, bits; pure.

Every change is paired by item, with an interval over base items, prompts or texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from align.data.answers import SampledAnswer
from evals.items import NO_SHIFT, Fields, Json
from evals.report.words import interval, num, share, signed
from evals.stats.intervals import Interval, paired_difference
from evals.stats.paired_shares import paired_change
from evals.tables.outcomes import Outcome, mean_share, shares

Policy = tuple[str, str]  # a row and the label of its preference, empty for the reference
KEYS = ("unsafe_refusal", "safe_refusal", "helpful", "harmless", "bits_per_byte", "choices_right")
HEADS = ("unsafe refused", "safe refused", "helpful", "harmless", "bits per byte", "choices right")
SIDES = {"unsafe_refusal": True, "safe_refusal": False}  # what is refused -> whether refusing it is right


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one policy: shares and values by item, and each item's base item where it has one."""

    refused: Mapping[str, Mapping[str, float]]  # a side -> item -> share of its responses that refuse
    right: Mapping[str, float] = field(default_factory=dict)  # of a multiple-choice suite
    rewards: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # objective -> prompt -> mean score
    bits: Mapping[str, float] = field(default_factory=dict)  # text -> bits per byte
    clusters: Mapping[str, str] = field(default_factory=dict)


def refusals(outcomes: Sequence[Outcome], *, shift: str = NO_SHIFT) -> dict[str, dict[str, float]]:
    """Side -> item -> share of responses that were judged to refuse; what no judge could decide is no refusal."""
    found = {}
    for side, harmful in SIDES.items():
        group = [one for one in outcomes if one.shift == shift and one.harmful is harmful]
        found[side] = shares(group, verdict="GOOD" if harmful else "BAD")
    return found


def rewards(answers: Sequence[SampledAnswer], *, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Objective -> base item -> mean score over its plain samples."""
    by_item: dict[str, list[Sequence[float]]] = {}
    for answer in answers:
        if answer.shift == NO_SHIFT:
            by_item.setdefault(answer.item, []).append(answer.values)
    return {
        name: {item: sum(values[k] for values in drawn) / len(drawn) for item, drawn in by_item.items()}
        for k, name in enumerate(names)
    }


def levels(policy: Measured) -> dict[str, float]:
    """Number -> its mean over items: shares refused, share of right choices, rewards, bits per byte."""
    return {name: sum(found.values()) / len(found) for name, found in _numbers(policy).items() if found}


def level_intervals(policy: Measured) -> dict[str, Interval]:
    """The shares among the levels, with Wilson's intervals over base items."""
    found = {name: values for name, values in _numbers(policy).items() if name in (*SIDES, "choices_right") and values}
    clusters = {item: policy.clusters.get(item, item) for values in found.values() for item in values}
    made = {name: mean_share(values, clusters=clusters) for name, values in found.items()}
    return {name: interval for name, interval in made.items() if interval is not None}


def changes(policy: Measured, *, reference: Measured) -> dict[str, Interval]:
    """Number -> the policy's mean less the reference's, over the items of both; none where they share none."""
    before, after = _numbers(reference), _numbers(policy)
    clusters = {item: policy.clusters.get(item, item) for found in after.values() for item in found}
    made: dict[str, Interval] = {}
    for name, found in after.items():
        both = [item for item in found if item in before.get(name, {})]
        if not both:
            continue
        first, second = {item: found[item] for item in both}, {item: before[name][item] for item in both}
        if name in (*SIDES, "choices_right"):
            change = paired_change(first, before=second, clusters=clusters)
        else:
            over = "prompts, paired" if name in policy.rewards else "texts, paired"
            change = paired_difference(first, second=second, over=over)
        if change is not None:
            made[name] = change
    return made


def _numbers(policy: Measured) -> dict[str, Mapping[str, float]]:
    return {**policy.refused, **policy.rewards, "choices_right": policy.right, "bits_per_byte": policy.bits}


def claims(found: Mapping[str, Interval | None], *, compared: str, command: str) -> dict[str, Json]:
    """Name -> value, interval, n, what was `compared`, the command; a change that could not be had is left out."""
    return {
        name: {**change.stated, "ci": change.pair, "compared": compared, "command": command}
        for name, change in found.items()
        if change
    }


# ------------------------------------------------------------------------------------------------------------ in words


def shown_change(change: Interval | None) -> str:
    """A change in brackets with its interval."""
    return "" if change is None else f" ({signed(change.estimate)} {interval(change.pair)})"


def points_table(every: Mapping[Policy, Measured], *, reference: Policy) -> Json:
    """A line per policy: its levels, and in brackets what moved against the reference."""
    rows = []
    for (row, label), one in every.items():
        means, shown = levels(one), level_intervals(one)
        moved = {} if (row, label) == reference else changes(one, reference=every[reference])
        cells = [(share if key in shown else num)(means.get(key)) + shown_change(moved.get(key)) for key in KEYS]
        rows.append([f"{row} {label}".strip(), *cells])
    how = (
        "Shares, mean judge scores and bits per byte; in brackets the change against the reference on the same items "
        "with its 95 % interval."
    )
    return {"title": "Every policy on suites", "head": ["policy and its weights", *HEADS], "rows": rows, "how": how}


def shifts_table(under: Mapping[str, Mapping[Policy, Measured]], *, reference: Policy) -> Json:
    """Shift -> policies: the shares that each refuses, and in brackets the change against the reference there."""
    rows = []
    for shift, every in under.items():
        for side in SIDES:
            cells = []
            for policy, one in every.items():
                moved = None if policy == reference else changes(one, reference=every[reference]).get(side)
                cells.append(share(levels(one).get(side)) + shown_change(moved))
            rows.append([shift, side.replace("_", " "), *cells])
    head = ["shift", "side", *(" ".join(policy).strip() for policy in next(iter(under.values())))]
    how = "Shares of unsafe and safe requests refused, as they are and under shifts and their controls."
    return {"title": "Refusals under shifts", "head": head, "rows": rows, "how": how}


def curves_table(curves: Mapping[str, Fields], *, names: Sequence[str]) -> Json:
    """Objective -> its best-of-n curve, a line per n."""
    rows = [
        [
            name, str(p["n"]), num(p["kl"], 2), signed(p["proxy"]),
            f"{signed(p['gold']['value'])} {interval(p['gold']['ci'])}",
        ]
        for name in names
        for p in curves[name]["points"]
    ]  # fmt: skip
    head = ["objective", "n", "KL at most", "our reward model gains", "judge gains"]
    how = "Best of n of the reference's samples, chosen by our reward model, paid by the judge; 95 % over prompts."
    return {"title": "Over-optimisation", "head": head, "rows": rows, "how": how}


def claim_sentences(claimed: Mapping[str, Fields]) -> list[str]:
    """Each claim as one sentence."""
    return [
        f"{name.replace('_', ' ')} ({one['compared']}): {signed(one['value'])} {interval(one['ci'])}, n = {one['n']}."
        for name, one in claimed.items()
    ]


def page(summary: Fields, claimed: Mapping[str, Fields], *, about: Sequence[str]) -> str:
    """The same as Markdown, for a folder of results: claims, what stands `about` them, every table."""
    lines = [f"# {summary['title']}", "", *about, ""]
    lines += ["| change | of | value | 95 % interval | n |", "| --- | --- | ---: | ---: | ---: |"]
    for name, one in claimed.items():
        cells = (name.replace("_", " "), one["compared"], signed(one["value"]), interval(one["ci"]), str(one["n"]))
        lines.append(f"| {' | '.join(cells)} |")
    for table in summary["tables"]:
        lines += ["", f"## {table['title']}", "", table["how"], ""]
        lines += [f"| {' | '.join(row)} |" for row in (table["head"], ["---"] * len(table["head"]), *table["rows"])]
    return "\n".join(lines) + "\n"
