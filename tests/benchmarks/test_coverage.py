"""The coverage simulation: intervals hold the exact truth about as often as they say, and a naive one does not."""

from __future__ import annotations

import pytest

from benchmarks.coverage import run as coverage


def test_intervals_cover_and_prompts_taken_for_base_items_do_not() -> None:
    asked = {"groups": 20, "evaluations": 100, "seed": 3}
    for name in ("clustered mean", "paired difference", "ASR difference, paired"):
        line = coverage.coverage_of(name, coverage.ESTIMATORS[name], **asked)
        assert line.share >= 0.88 and line.clusters == 20 and line.refused == 0, line
        assert line.degrees == pytest.approx(19)
    naive = coverage.coverage_of("naive", coverage.HARD["skewed score, prompts as base items"], **asked)
    assert naive.share < 0.85 and naive.degrees == 99


def test_a_true_null_is_rejected_seldom_and_by_the_naive_test_often() -> None:
    asked = {"groups": 20, "evaluations": 100, "seed": 3}
    assert coverage.type_one_error("paired t", **asked).share <= 0.12
    assert coverage.type_one_error("paired t", case="naive", **asked).share > 0.2


@pytest.mark.parametrize(("name", "items"), [("3 points", 100), ("5 points, 5 points the other way", 200)])
def test_rare_changes_are_covered(name: str, items: int) -> None:
    """A t interval held 3 points of 100 items in .80 of evaluations. 2,000 draws: three standard errors below .93."""
    line = coverage.rare_coverage(name, coverage.RARE[name, items], items=items, evaluations=2000, seed=5)
    assert 0.915 <= line.share <= 0.985 and line.clusters == items and line.refused == 0, line


def test_rare_changes_in_clusters_are_covered() -> None:
    draw = coverage.RARE["10 points, in clusters of 5", 200]
    line = coverage.rare_coverage("in clusters", draw, items=200, evaluations=300, seed=5)
    assert line.share >= 0.9 and line.degrees == pytest.approx(39), line


@pytest.mark.slow
@pytest.mark.parametrize("groups", coverage.SIZES)
@pytest.mark.parametrize("name", list(coverage.ESTIMATORS))
def test_every_named_estimator_covers(name: str, groups: int) -> None:
    """400 evaluations: the limits are three standard errors around .93 and .97."""
    line = coverage.coverage_of(name, coverage.ESTIMATORS[name], groups=groups, evaluations=400, seed=1)
    assert 0.893 <= line.share <= 0.995, line


@pytest.mark.parametrize(("name", "items"), coverage.OTHERS)
def test_every_other_row_of_the_page_draws_an_interval(name: str, items: int) -> None:
    line = coverage.rare_coverage(name, coverage.OTHERS[name, items], items=items, evaluations=5, seed=1)
    assert line.share >= 0.4 and line.refused == 0, line
