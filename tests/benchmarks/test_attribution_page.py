"""The attribution page's verdicts: what an estimate claims, and what its interval does."""

from __future__ import annotations

from benchmarks.attribution.page import PARTS, rank_inside, verdict


def test_a_bar_is_met_by_the_interval_only_where_its_lower_end_reaches_it() -> None:
    sure, wide = {"value": 0.98, "ci": [0.96, 0.99]}, {"value": 1.0, "ci": [0.887, 1.0]}
    assert verdict([sure], bar=0.95).endswith("by the lower end of the interval too")
    assert verdict([sure, wide], bar=0.95).endswith("**met** by the estimate alone; the interval begins at 0.887")
    assert verdict([{"value": 1.0, "ci": None}], bar=0.95).endswith("there is no interval")
    assert "**not met**" in verdict([sure, {"value": 0.94, "ci": [0.9, 0.97]}], bar=0.95)


def test_agreement_inside_a_shift_does_not_come_from_differences_of_shifts() -> None:
    exact, sampled = (1.0, 2.0, 3.0, 11.0, 12.0, 13.0), (3.0, 2.0, 1.0, 13.0, 12.0, 11.0)  # in order only across shifts
    points = [
        {"shift": "st"[k // 3], "exact": dict.fromkeys(PARTS, e), "sampled": dict.fromkeys(PARTS, s)}
        for k, (e, s) in enumerate(zip(exact, sampled, strict=True))
    ]
    assert rank_inside(points, side="sampled", part="optimum") == "s −1.00, t −1.00"
