"""What a policy keeps when both it and its reference are fine-tuned further: leads by number of steps; pure.

A lead is the policy's mean less the reference's on the same items. The reference, fine-tuned on the same rows for as
many steps, is the control: what fine-tuning does to a model that had nothing to lose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.items import Json
from evals.stats.intervals import Interval, clustered_mean, clustered_ratio
from evals.stats.paired_shares import paired_change


@dataclass(frozen=True)
class Stressed:
    """Item -> value of the policy and of the reference after so many steps; `share`: whether values are shares."""

    steps: int
    policy: Mapping[str, float]
    reference: Mapping[str, float]


def durability(series: Sequence[Stressed], *, clusters: Mapping[str, str], share: bool) -> list[Json]:
    """A point per number of steps, the first being 0: `policy`, `reference`, their means; `lead`; `policy_change` and
    `reference_change` since 0; `lead_change`, that of the lead; `kept`, the lead as a share of that at 0.

    All over the items that every point has on both sides, paired. `kept` is null where the lead at 0 cannot be told
    from none: there is nothing to keep. ValueError without a point at 0, or without a common item.
    """
    sides = [side for point in series for side in (point.policy, point.reference)]
    items = [item for item in sides[0] if all(item in side for side in sides)] if sides else []
    if not items or series[0].steps != 0:
        raise ValueError(f"{len(items)} items have all values of {len(series)} points, which begin with 0 steps")
    labels = [clusters[item] for item in items]

    def change(after: Mapping[str, float], before: Mapping[str, float]) -> Interval:
        if share:
            found = paired_change({i: after[i] for i in items}, before={i: before[i] for i in items}, clusters=clusters)
            assert found is not None  # there are items
            return found
        return clustered_mean([after[i] - before[i] for i in items], clusters_N=labels, over="base items, paired")

    start, points = series[0], []
    lead = change(start.policy, start.reference)
    for point in series:
        leads = [[one.policy[i] - one.reference[i] for i in items] for one in (point, start)]
        points.append({
            "steps": point.steps, "items": len(items), "lead": change(point.policy, point.reference).stated,
            "policy": sum(point.policy[i] for i in items) / len(items),
            "reference": sum(point.reference[i] for i in items) / len(items),
            "policy_change": change(point.policy, start.policy).stated,
            "reference_change": change(point.reference, start.reference).stated,
            "lead_change": clustered_mean(
                [now - before for now, before in zip(*leads, strict=True)], clusters_N=labels, over="base items, paired"
            ).stated,
            "kept": clustered_ratio(leads[0], second_N=leads[1], clusters_N=labels).stated
            if lead.excludes_zero else None,
        })  # fmt: skip
    return points
