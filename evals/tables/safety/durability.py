"""What a policy keeps when both it and its reference are fine-tuned further: leads by number of steps; pure.

A lead is the policy's mean less the reference's on the same items. The reference, fine-tuned on the same rows for as
many steps, is the control: what fine-tuning does to a model that had nothing to lose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.items import Json
from evals.stats.intervals import clustered_mean, clustered_ratio
from evals.stats.paired_shares import paired_change


@dataclass(frozen=True)
class Stressed:
    """Item -> value of the policy and of the reference after so many steps; `share`: whether values are shares."""

    steps: int
    policy: Mapping[str, float]
    reference: Mapping[str, float]


def durability(series: Sequence[Stressed], *, clusters: Mapping[str, str], share: bool) -> list[Json]:
    """A point per number of steps, the first being 0: `policy`, `reference` (means), `lead`; and since 0 steps (null
    there) `policy_change`, `reference_change`, `lead_change` and `kept`, the lead as a share of what it was.

    All over the items that every point has on both sides, paired. `kept` is null where the lead at 0 cannot be told
    from none: there is nothing to keep. ValueError without a point at 0, or without a common item.
    """
    sides = [side for point in series for side in (point.policy, point.reference)]
    items = [item for item in sides[0] if all(item in side for side in sides)] if sides else []
    if not items or series[0].steps != 0:
        raise ValueError(f"{len(items)} items have all values of {len(series)} points, which begin with 0 steps")
    labels = [clusters[item] for item in items]

    def change(after: Mapping[str, float], before: Mapping[str, float], span: float = 1.0) -> Json:
        if share:
            found = paired_change(
                {i: after[i] for i in items}, before={i: before[i] for i in items}, clusters=clusters, span=span
            )
            assert found is not None  # there are items
            return found.stated
        return clustered_mean(
            [after[i] - before[i] for i in items], clusters_N=labels, over="base items, paired"
        ).stated

    start, points = series[0], []
    leads = [{i: one.policy[i] - one.reference[i] for i in items} for one in series]
    first = change(start.policy, start.reference)
    told = first["ci"] is not None and not first["ci"][0] <= 0 <= first["ci"][1]
    for point, lead in zip(series, leads, strict=True):
        since = {
            "policy_change": change(point.policy, start.policy),
            "reference_change": change(point.reference, start.reference),
            "lead_change": change(lead, leads[0], span=2.0),
            "kept": _kept(list(lead.values()), list(leads[0].values()), labels=labels) if told else None,
        }
        points.append({
            "steps": point.steps, "items": len(items), "lead": change(point.policy, point.reference),
            "policy": sum(point.policy[i] for i in items) / len(items),
            "reference": sum(point.reference[i] for i in items) / len(items),
            **(since if point.steps else dict.fromkeys(since)),
        })  # fmt: skip
    return points


def _kept(now_N: Sequence[float], start_N: Sequence[float], *, labels: Sequence[str]) -> Json:
    """Sum of the leads now over that at the start; without an interval where it would have no width."""
    found = clustered_ratio(now_N, second_N=start_N, clusters_N=labels)
    alike = {"ci": None, "over": "no interval: the leads at both points are alike up to a factor"}
    return found.stated | ({} if found.se and found.se > 1e-12 else alike)
