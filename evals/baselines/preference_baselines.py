"""What preference data give away cheaply: bag-of-words and length-only Bradley-Terry models, length-matched pairs.

Both models are P(chosen beats rejected) = sigmoid(s(chosen) - s(rejected)), s a linear score of the completion alone
(Bradley and Terry 1952), fitted by scikit-learn; a reward model that does not beat them has learned words or length.
Shapes: N pairs, F features.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from evals.stats.intervals import LEVEL, Interval
from evals.stats.shares import share_of

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_WORD = re.compile(r"\w+|[^\w\s]")

Pair = Mapping[str, str]  # "prompt", "chosen", "rejected"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BagOfWords:
    """A fitted linear score over words; `fit_bag_of_words` makes it."""

    weights: Mapping[str, float]

    def scores(self, completions: Sequence[str]) -> Floats:
        """s(y) = sum over words of weight * log(1 + count), shape (N,)."""
        values = []
        for text in completions:
            counts = Counter(words(text))
            values.append(sum(self.weights.get(word, 0.0) * math.log1p(n) for word, n in counts.items()))
        return np.array(values)


@dataclass(frozen=True)
class LengthOnly:
    """s(y) = weight * log(1 + number of words); the sign of the weight is all that an accuracy sees."""

    weight: float

    def scores(self, completions: Sequence[str]) -> Floats:
        """Scores of the completions, shape (N,)."""
        return self.weight * np.array([math.log1p(word_count(text)) for text in completions])


@dataclass(frozen=True)
class PairwiseAccuracy:
    """Share of pairs in the labelled order (a tie counts one half), with its interval over prompts."""

    interval: Interval  # estimate, low, high, over = "prompts", n = number of prompts
    pairs: int
    ties: int


def words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return _WORD.findall(text.lower())


def word_count(text: str) -> int:
    """Words separated by white space."""
    return len(text.split())


def fit_bag_of_words(pairs: Sequence[Pair], *, l2: float = 30.0, min_pairs: int = 3) -> BagOfWords:
    """Fit the word weights by penalised logistic regression, sum_i log(1 + exp(-d_i.w)) + l2/2 |w|^2.

    d_i is the difference of log(1 + count) between chosen and rejected.

    Args:
        l2: penalty; 30 and 100 were level and above 10 and 300 in 3-fold cross-validation on 7,800 HH training pairs.
        min_pairs: a word must occur in this many pairs.
    Raises:
        ValueError: no pairs, or a penalty that is not positive.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    if not pairs or l2 <= 0:
        raise ValueError("bag of words: at least one pair, and l2 above 0")
    occurs = Counter(word for pair in pairs for word in {*words(pair["chosen"]), *words(pair["rejected"])})
    vocabulary = sorted(word for word, n in occurs.items() if n >= min_pairs)
    if not vocabulary:
        return BagOfWords(weights={})
    counter = CountVectorizer(analyzer=words, vocabulary=vocabulary, dtype=np.float64)
    chosen_NF, rejected_NF = (counter.transform([pair[side] for pair in pairs]) for side in ("chosen", "rejected"))
    weights_F = _fit_logistic(chosen_NF.log1p() - rejected_NF.log1p(), l2=l2)
    return BagOfWords(weights=dict(zip(vocabulary, weights_F.tolist(), strict=True)))


def fit_length_only(pairs: Sequence[Pair], *, l2: float = 1e-3) -> LengthOnly:
    """Fit the one weight of log(1 + number of words); ValueError without pairs."""
    if not pairs:
        raise ValueError("length-only model: at least one pair")
    chosen = [math.log1p(word_count(pair["chosen"])) for pair in pairs]
    rejected = [math.log1p(word_count(pair["rejected"])) for pair in pairs]
    features_NF = (np.array(chosen) - np.array(rejected))[:, None]
    return LengthOnly(weight=float(_fit_logistic(features_NF, l2=l2)[0]))


def pairwise_accuracy(
    chosen: Sequence[float],
    rejected: Sequence[float],
    *,
    prompts: Sequence[str],
    level: float = LEVEL,
) -> PairwiseAccuracy:
    """How often the score of `chosen` is above that of `rejected`.

    Args:
        chosen: scores of the chosen completions, shape (N,).
        rejected: scores of the rejected ones, shape (N,).
        prompts: the prompt of each pair. Pairs of one prompt are not independent: it is one cluster.
        level: of the interval (`stats.shares`).
    Raises:
        ValueError: no pairs, lengths that differ, or a score that is not a number (`in_order`).
    """
    right_N = in_order(chosen, rejected)
    if len(prompts) != len(right_N):
        raise ValueError(f"{len(right_N)} pairs with {len(prompts)} prompts: give the prompt of each pair")
    interval = share_of(right_N, clusters_N=prompts, over="prompts", level=level)
    return PairwiseAccuracy(interval=interval, pairs=len(right_N), ties=int((right_N == 0.5).sum()))


def in_order(chosen: Sequence[float], rejected: Sequence[float]) -> Floats:
    """1 where the chosen completion scores higher, 0 where lower, 1/2 for a tie; shape (N,).

    The difference of two models' values, clustered by prompt, says whether one beats the other on the same pairs.

    Raises:
        ValueError: no pairs, lengths that differ, or a score that is not a number.
    """
    a, b = np.asarray(chosen, dtype=float), np.asarray(rejected, dtype=float)
    if len(a) == 0 or a.shape != b.shape:
        raise ValueError(f"{len(a)} chosen and {len(b)} rejected scores do not pair up")
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("pairwise accuracy: a score is not a number")
    return (a > b) + 0.5 * (a == b)


def length_matched(
    pairs: Sequence[Pair], *, tolerance: float = 0.25, unit: Literal["words", "characters"] = "words"
) -> list[Pair]:
    """The pairs whose two lengths differ by at most `tolerance` of the longer one; ValueError outside [0, 1)."""
    if not 0 <= tolerance < 1:
        raise ValueError(f"length tolerance {tolerance}: a share from 0 to below 1")
    length = word_count if unit == "words" else len
    kept = []
    for pair in pairs:
        one, other = length(pair["chosen"].strip()), length(pair["rejected"].strip())
        if abs(one - other) <= tolerance * max(one, other):
            kept.append(pair)
    return kept


def _fit_logistic(features_NF: Floats | csr_matrix, *, l2: float) -> Floats:
    """argmin_w sum_i log(1 + exp(-x_i.w)) + l2/2 |w|^2 (every label is "chosen wins"), shape (F,).

    Each row also enters mirrored, as a loss: scikit-learn wants two classes, and the optimum stays where it is.
    """
    from scipy.sparse import csr_matrix, vstack
    from sklearn.linear_model import LogisticRegression

    rows = csr_matrix(features_NF)
    model = LogisticRegression(C=1 / (2 * l2), fit_intercept=False, tol=1e-8, max_iter=10_000)
    model.fit(vstack([rows, -rows]), np.repeat([True, False], rows.shape[0]))
    return np.asarray(model.coef_[0])
