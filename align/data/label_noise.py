"""How much labels say: an annotator's temperature against the spread of w . r, agreement, and what differs between w.

An annotator of temperature tau prefers the first response with probability sigmoid(w . dr / tau). Where tau is large
against the differences w . dr of the pairs, labels are coin flips; and since a pair's draw is the same at every w
(unless rows bring draws of their own), they are the same flips at every w: all points of a front are trained on one
data set. Legend: N pairs.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from align.data.comparisons import JudgedRows
from align.preferences import Weights

COIN_FLIPS = 0.6  # a share of right labels below this is too near a half


@dataclass(frozen=True, kw_only=True)
class LabelNoise:
    """Labels at `weights`. `spread` is the standard deviation of w . dr; `agree` the share of labels with its sign, and
    `expected_agree` what the temperature makes of it (pairs with w . dr = 0 aside; None where there are no others).
    """

    weights: str
    tau: float
    spread: float
    agree: float | None
    expected_agree: float | None

    @property
    def near_coin_flips(self) -> bool:
        return self.expected_agree is None or self.expected_agree < COIN_FLIPS


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """The labels at each of the weights asked; of all pairs, the share whose label is not the same at all of them
    (`differ`), and the share where the sign of w . dr is not (`signs_differ`); None with fewer than two weights.
    """

    at: tuple[LabelNoise, ...]
    differ: float | None
    signs_differ: float | None

    def metrics(self, weights: Weights) -> dict[str, object]:
        """What a point's run records of its labels."""
        one = next(noise for noise in self.at if noise.weights == weights.label)
        names = ("tau", "spread", "agree", "expected_agree")
        return {**{name: getattr(one, name) for name in names}, "differ_between_weights": self.differ}


def label_report(judged: JudgedRows, *, at: Sequence[Weights]) -> LabelReport | None:
    """The report of labels drawn by an annotator; None for labels that the rows came with."""
    if judged.scores is None or not at:
        return None
    noise, won, signs = [], [], []
    for weights in at:
        first_N = [not pair.swapped for pair in judged.labelled_at(weights)]  # which refuses rows without their scores
        sides = [judged.scores[str(row["id"])] for row in judged.rows]
        gaps_N = [math.fsum(w * (a - b) for w, a, b in zip(weights, *side, strict=True)) for side in sides]
        decided = [(gap, first) for gap, first in zip(gaps_N, first_N, strict=True) if gap]
        sure = [1 / (1 + math.exp(-min(abs(gap) / judged.tau, 700.0))) for gap, _ in decided]
        noise.append(
            LabelNoise(
                weights=weights.label,
                tau=judged.tau,
                spread=statistics.pstdev(gaps_N),
                agree=sum((gap > 0) == first for gap, first in decided) / len(decided) if decided else None,
                expected_agree=math.fsum(sure) / len(sure) if sure else None,
            )
        )
        won.append(first_N)
        signs.append([(gap > 0) - (gap < 0) for gap in gaps_N])
    if len(at) < 2:
        return LabelReport(at=tuple(noise), differ=None, signs_differ=None)
    differ, signs_differ = (sum(len(set(row)) > 1 for row in zip(*table, strict=True)) for table in (won, signs))
    count = len(judged.rows)
    return LabelReport(at=tuple(noise), differ=differ / count, signs_differ=signs_differ / count)


def tell(report: LabelReport, *, method: str) -> None:
    """One line on stderr about the labels, and a plain warning where they are close to coin flips."""
    spreads, agree = [one.spread for one in report.at], [one.agree for one in report.at if one.agree is not None]
    text = f"align: {method}: labels at tau {report.at[0].tau:g}, spread of w.dr {_range(spreads, '.3g')}"
    if agree:
        text += f", {_range([100 * a for a in agree], '.0f')} % agree with its sign"
    if report.differ is not None:
        text += f", {100 * report.differ:.0f} % differ between the {len(report.at)} weights"
        text += f" ({100 * (report.signs_differ or 0):.0f} % without noise)"
    print(text, file=sys.stderr)
    poor = [one.weights for one in report.at if one.near_coin_flips]
    if poor:
        print(
            f"align: warning: labels at w = {'; '.join(poor)} are close to coin flips: tau {report.at[0].tau:g} is "
            f"large against the differences w.dr (spread {_range(spreads, '.3g')}); lower tau towards that spread, or "
            "give the scores a larger scale",
            file=sys.stderr,
        )


def _range(values: Sequence[float], form: str) -> str:
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
