"""align.data.label_noise: what labels say at several weights, by hand; coin flips are named before training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from align.data.comparisons import JudgedRows
from align.data.label_noise import label_report, tell
from align.methods import dpo
from align.preferences import Weights
from align.runs import open_run
from factories.tiny_bandit import PAIRS, fit, pair_rows

ROWS = [
    {"id": str(i), "prompt": "p", "a": "a", "b": "b", "scores_a": a, "scores_b": b, "u": u}
    for i, (a, b, u) in enumerate(
        [
            ((1.0, 0.0), (0.0, 0.0), 0.5),  # one: +1, two: 0
            ((0.0, 0.0), (1.0, -1.0), 0.5),  # one: -1, two: +1
            ((2.0, 1.0), (0.0, 0.0), 0.99),  # one: +2, two: +1; the draw turns one's label round at tau 1: .88 < .99
            ((0.0, 0.0), (0.0, 0.0), 0.5),  # nothing to tell
        ]
    )
]
ENDS = Weights.vertices(2)


def judged(tau: float) -> JudgedRows:
    scores = {row["id"]: (row["scores_a"], row["scores_b"]) for row in ROWS}
    return JudgedRows(rows=ROWS, names=["one", "two"], scores=scores, tau=tau, seed=0)


def test_spread_agreement_and_difference_are_those_by_hand() -> None:
    """At w = (1, 0) the gaps are 1, -1, 2, 0, at (0, 1) they are 0, 1, 1, 0."""
    report = label_report(judged(1.0), at=ENDS)
    assert report is not None
    one, two = report.at
    assert one.spread == pytest.approx(math.sqrt((1 + 1 + 4) / 4 - 0.25)) and two.spread == pytest.approx(0.5)
    assert (one.agree, two.agree) == (pytest.approx(2 / 3), pytest.approx(1 / 2))
    s1, s2 = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    assert one.expected_agree == pytest.approx((2 * s1 + s2) / 3) and two.expected_agree == pytest.approx(s1)
    # labels (first wins): + - - -, and - + - -: u < sigmoid(0) is false at u = 0.5
    assert report.differ == pytest.approx(2 / 4) and report.signs_differ == pytest.approx(2 / 4)
    assert report.metrics(ENDS[0])["agree"] == one.agree and not one.near_coin_flips
    assert label_report(JudgedRows(rows=ROWS, names=["one", "two"], scores=None, tau=1.0, seed=0), at=ENDS) is None


def test_coin_flips_are_named_in_a_plain_warning(capsys: pytest.CaptureFixture[str]) -> None:
    clear, flips = (label_report(judged(tau), at=ENDS) for tau in (0.5, 100.0))
    assert clear is not None and flips is not None
    tell(clear, method="dpo")
    said = capsys.readouterr().err
    assert said.startswith("align: dpo: labels at tau 0.5, spread of w.dr 0.5 to 1.12, ") and said.count("\n") == 1
    assert "% differ between the 2 weights (50 % without noise)" in said
    tell(flips, method="dpo")
    warning = capsys.readouterr().err.splitlines()[1]
    assert "labels at w = 1,0; 0,1 are close to coin flips: tau 100 is large" in warning and "lower tau" in warning


def test_dpo_says_it_and_each_point_records_it(
    reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a temperature far above every gap the two ends of the front are trained on the same labels."""
    config = dpo.Config(**{**PAIRS, "epochs": 1.0, "tau": 1e4})
    family = fit(dpo, config, reference=reference, weights=ENDS, out=tmp_path, comparisons=pair_rows(32))
    assert "close to coin flips" in capsys.readouterr().err
    labels = open_run(Path(family.points["1,0"]).parent).metrics["labels"]
    assert labels["tau"] == 1e4 and labels["differ_between_weights"] == 0 and 0.2 < labels["agree"] < 0.8
    assert labels["expected_agree"] == pytest.approx(0.5, abs=1e-3)
