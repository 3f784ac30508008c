"""Combining the objectives' gradients into one step: K coefficients from their K x K Gram matrix; pure.

The step is `sum_k c_k g_k`, so that every method below needs only the inner products `M_kl = <g_k, g_l>` and never the
gradients themselves. All of them are odd in the gradients: rows may be gradients of losses or of what is maximised.
What a preference w means differs, and is said at each of them; only `weighted_sum`, `cagrad` and `raco` have one of
their own. `coefficients` is the entrance: it leaves out objectives of weight 0, and with one objective left there is
nothing to combine, so that at w = e_k the step is g_k, bit for bit.
Legend: K objectives (rows of the Gram matrix).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from align import checks
from align.errors import UserError
from align.functional.conflict import gradient_cosines

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_NULL = 1e-6  # a mixture whose norm is below this share of the largest gradient's has no direction, only rounding


class Combiner(Protocol):
    """How K gradients become one step. `c` and `rng` are read by those that say so; weights are above 0, sum 1."""

    def __call__(
        self, gram_KK: ArrayLike, *, weights: Sequence[float], c: float = 0.5, rng: np.random.Generator | None = None
    ) -> np.ndarray: ...


def coefficients(
    gram_KK: ArrayLike,
    *,
    combiner: str,
    weights: Sequence[float],
    c: float = 0.5,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """(K,) coefficients of the gradients by the named combiner; 0 for objectives of weight 0, which have no say.

    ValueError on an unknown name, weights that do not fit or have no positive entry, or a matrix that is not finite.
    """
    if combiner not in COMBINERS:
        raise ValueError(f"combiner must be one of {', '.join(COMBINERS)}, not {combiner!r}")
    gram_KK, weights_K = _checked(gram_KK, weights)
    counts = np.flatnonzero(weights_K)
    found_K = np.zeros(len(weights_K))
    if len(counts) == 1:
        found_K[counts] = 1.0
    else:
        of_those = gram_KK[np.ix_(counts, counts)]
        found_K[counts] = COMBINERS[combiner](of_those, weights=weights_K[counts].tolist(), c=c, rng=rng)
    return found_K


@dataclass(frozen=True)
class Combination:
    """How the gradients of the named objectives are combined; weights are those of these objectives, all above 0."""

    combiner: str
    weights: tuple[float, ...]
    names: tuple[str, ...]
    c: float = 0.5
    seed: int = 0

    def coefficients(self, gram_KK: ArrayLike, *, step: int) -> np.ndarray:
        """(K,) coefficients for this step; PCGrad's order depends on seed and step alone, hence on no process."""
        rng = np.random.default_rng([self.seed, step])
        return coefficients(gram_KK, combiner=self.combiner, weights=self.weights, c=self.c, rng=rng)


def check_combiner(config: Any) -> None:
    """UserError on a `combiner` that there is none of, or a radius `c` outside [0, 1)."""
    if config.combiner not in COMBINERS:
        raise UserError(f"combiner must be one of {', '.join(COMBINERS)}, not {config.combiner!r}")
    checks.at_least(0, config, "c")
    if config.c >= 1:
        raise UserError(f"c must be below 1, not {config.c:g}: CAGrad could stop anywhere Pareto-stationary")


def weighted_sum(
    gram_KK: ArrayLike, *, weights: Sequence[float], c: float = 0.5, rng: np.random.Generator | None = None
) -> np.ndarray:
    """The weights themselves: the gradient of `sum_k w_k L_k`."""
    return _checked(gram_KK, weights)[1]


def mgda(
    gram_KK: ArrayLike, *, weights: Sequence[float], c: float = 0.5, rng: np.random.Generator | None = None
) -> np.ndarray:
    """MGDA (Desideri 2012; Sener and Koltun 2018): the shortest vector of the gradients' convex hull.

    Solved exactly, for any K. Each objective improves, `<d, g_k> >= 0`, until none can without hurting another.
    *Preference*: none in the papers. Ours takes the hull of `g_k / w_k`, so that objectives improve at rates of at
    least w: `<d, g_k> >= s w_k` with one s for all, equal where c_k > 0. (Gradients *times* w would do the opposite,
    since the shortest vector leans to the smallest gradient.) Equal weights are plain MGDA; orthonormal gradients get
    the coefficients w. The point where it stops depends on the start, not on w alone.
    Coefficients sum to 1. A gradient that is 0 makes the step 0. ValueError unless all weights are above 0.
    """
    gram_KK, weights_K = _checked(gram_KK, weights, positive=True)
    found_K = _shortest(square_root(gram_KK) / weights_K[:, None]) / weights_K
    return found_K / found_K.sum()


def pcgrad(
    gram_KK: ArrayLike, *, weights: Sequence[float], c: float = 0.5, rng: np.random.Generator | None = None
) -> np.ndarray:
    """PCGrad (Yu et al. 2020, algorithm 1): each gradient is projected off those it conflicts with, in random order.

    A projection only adds a multiple of another gradient, so that it is done on coefficients. Reads `rng`.
    *Preference*: none in the paper, which sums the projected gradients. Ours is their mean weighted by w (1 / K of the
    sum at equal weights), which differs from the weighted sum of gradients only where they conflict. With K = 2 it
    stops wherever the gradients are opposed, whatever w; with K > 2 it may still conflict with one (as published).
    ValueError without `rng`.
    """
    gram_KK, weights_K = _checked(gram_KK, weights)
    if rng is None:
        raise ValueError("pcgrad projects in random order; pass rng")
    projected_KK = np.eye(len(weights_K))  # row i: coefficients of the gradients in the i-th projected one
    for i, row_K in enumerate(projected_KK):
        for j in rng.permutation(len(weights_K)):
            dot = row_K @ gram_KK[j]
            if j != i and dot < 0:
                row_K[j] -= dot / gram_KK[j, j]  # above 0, or dot would be 0
    return weights_K @ projected_KK


def cagrad(
    gram_KK: ArrayLike, *, weights: Sequence[float], c: float = 0.5, rng: np.random.Generator | None = None
) -> np.ndarray:
    """CAGrad (Liu et al. 2021): the step within `c ||g_0||` of g_0 that is best for the objective it serves worst.

    `max_d min_k <g_k, d>` subject to `||d - g_0|| <= c ||g_0||`, through its dual (`cagrad_mixture`). Reads `c`.
    *Preference*: `g_0 = sum_k w_k g_k` (the mean in the paper). With c < 1 a step of 0 means g_0 = 0 (theorem 3.2):
    with exact gradients its stationary points are those of the weighted sum. On a batch it is biased, as is every
    combination that is not linear.
    *Deviations from the official code*, which solves the dual by SLSQP and divides the step by 1 + c^2: the paper's
    step as it is, the dual solved exactly. ValueError unless 0 <= c < 1.
    """
    gram_KK, weights_K = _checked(gram_KK, weights)
    return _towards(gram_KK, weights_K, mixture_K=cagrad_mixture(gram_KK, weights=weights, c=c), c=c)


def raco(
    gram_KK: ArrayLike, *, weights: Sequence[float], c: float = 0.5, rng: np.random.Generator | None = None
) -> np.ndarray:
    """RACO's CAGrad-Clip (Chen et al. 2026): CAGrad whose mixture is clipped by the weights, `min(p_k, w_k)`.

    So that the correction cannot hand the step to an objective that was given little weight. Reads `c`.
    *Preference*: as in `cagrad`, and more: at w = e_k the step is along g_k. The mixture is not renormalised, only its
    direction counts. *Deviations from the official code* (PeterLauLukChen/RACO, fd94b6f): that solves for every
    micro-batch instead of every step, and for K = 2 and 3 only. ValueError unless 0 <= c < 1.
    """
    gram_KK, weights_K = _checked(gram_KK, weights)
    mixture_K = np.minimum(cagrad_mixture(gram_KK, weights=weights, c=c), weights_K)
    return _towards(gram_KK, weights_K, mixture_K=mixture_K, c=c)


def nash_mtl(
    gram_KK: ArrayLike, *, weights: Sequence[float], c: float = 0.5, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Nash-MTL (Navon et al. 2022): the step maximising `sum_k w_k log <d, g_k>` on a ball, `M a = w / a`, a > 0.

    It does not see the scale of a gradient, and has norm 1 whatever the gradients' (0 at a Pareto-stationary point):
    the learning rate and Adam decide how far it goes. A gradient that is 0 gets the coefficient 0.
    *Preference*: none in the paper (w = 1). Ours is the asymmetric bargaining solution (Kalai 1977); gradients *times*
    w would change nothing. Orthogonal gradients get `sqrt(w_k) / ||g_k||`. It stops at any Pareto-stationary point.
    *Deviations from the official code*: the equation is the stationarity of the convex `a M a / 2 - sum_k w_k log a_k`
    and is solved by Newton's method (there: 20 steps of a convex-concave procedure); norm 1 instead of sqrt(K), which
    the official code clips to 1. ValueError unless all weights are above 0.
    """
    gram_KK, weights_K = _checked(gram_KK, weights, positive=True)
    norms_K = np.sqrt(np.diag(gram_KK))
    live = np.flatnonzero(norms_K)
    found_K = np.zeros(len(weights_K))
    if len(live):
        cosines_KK = gram_KK[np.ix_(live, live)] / np.outer(norms_K[live], norms_K[live])
        found_K[live] = _bargain(square_root(cosines_KK), weights_K[live]) / norms_K[live]
    return found_K


COMBINERS: dict[str, Combiner] = {
    "sum": weighted_sum,
    "mgda": mgda,
    "pcgrad": pcgrad,
    "cagrad": cagrad,
    "nash_mtl": nash_mtl,
    "raco": raco,
}

# What training by each of them ends at, for a family's `optimises`; {c} is CAGrad's radius.
FIXED_POINTS: dict[str, str] = {
    "sum": "their weighted sum",
    "mgda": "MGDA on g_k / w_k, which ends anywhere Pareto-stationary and not at the optimum at w",
    "pcgrad": "PCGrad, weighted by w, which may end where gradients are opposed and not at the optimum at w",
    "cagrad": "CAGrad (c {c:g}) around their weighted sum, whose stationary points it keeps but for noise",
    "nash_mtl": "Nash-MTL, bargaining powers w, which ends anywhere Pareto-stationary and not at the optimum at w",
    "raco": "RACO (c {c:g}) around their weighted sum, whose stationary points it keeps but for noise",
}


def cagrad_mixture(gram_KK: ArrayLike, *, weights: Sequence[float], c: float) -> np.ndarray:
    """(K,) p on the simplex minimising `<g_p, g_0> + c ||g_0|| ||g_p||`, `g_p = sum_k p_k g_k`: CAGrad's dual.

    For a guess t of ||g_p|| the second norm may be replaced by `(||g_p||^2 / t + t) / 2`, which leaves the shortest
    vector of the hull of `g_k + (t / c ||g_0||) g_0` to be found. The guess is right where it finds itself, which
    bisection does, because the minimum over p is convex in t. ValueError unless 0 <= c < 1.
    """
    if not 0 <= c < 1:
        raise ValueError(f"c must be in [0, 1), not {c}")
    gram_KK, weights_K = _checked(gram_KK, weights)
    rows_KK = square_root(gram_KK)
    target_K = weights_K @ rows_KK
    radius = c * np.linalg.norm(target_K)
    if radius == 0:
        return weights_K
    low, high = 0.0, float(np.sqrt(np.diag(gram_KK).max()))
    mixture_K = weights_K
    for _ in range(36):  # to 1e-11 of the interval
        t = (low + high) / 2
        mixture_K = _shortest(rows_KK + t / radius * target_K)
        low, high = (t, high) if np.linalg.norm(mixture_K @ rows_KK) > t else (low, t)
    return mixture_K


def square_root(gram_KK: ArrayLike) -> np.ndarray:
    """(K, K) rows that have the same Gram matrix as the gradients, and so stand for them; a gradient of 0 stays 0."""
    gram_KK = np.asarray(gram_KK, dtype=float)
    values_K, vectors_KK = np.linalg.eigh((gram_KK + gram_KK.T) / 2)
    rows_KK = vectors_KK * np.sqrt(np.clip(values_K, 0, None))
    rows_KK[np.diag(gram_KK) <= 0] = 0.0
    return rows_KK


def cosines_of(gram_KK: ArrayLike) -> np.ndarray:
    """(K, K) cosines between the gradients; nan for a gradient that is 0."""
    return gradient_cosines(square_root(gram_KK))


def _checked(gram_KK: ArrayLike, weights: Sequence[float], *, positive: bool = False) -> tuple[np.ndarray, np.ndarray]:
    gram_KK, weights_K = np.asarray(gram_KK, dtype=float), np.array(weights, dtype=float)
    if gram_KK.shape != (len(weights_K), len(weights_K)) or not np.isfinite(gram_KK).all():
        raise ValueError(f"the Gram matrix of {len(weights_K)} gradients must be square and finite, not {gram_KK}")
    if not (weights_K >= 0).all() or not (weights_K.sum() > 0) or (positive and not weights_K.all()):
        raise ValueError(f"weights must {'all be above 0' if positive else 'not be negative, nor all 0'}: {weights_K}")
    return gram_KK, weights_K


def _shortest(rows_KD: np.ndarray) -> np.ndarray:
    """(K,) the point of the simplex whose mixture of the rows is shortest.

    As a problem without the simplex: the minimum of `||p rows||^2 + (sum p - 1)^2` over p >= 0 is the answer times a
    number, because both terms only scale along a ray.
    """
    from scipy.optimize import nnls

    longest = np.linalg.norm(rows_KD, axis=1).max()
    scaled = rows_KD / longest if longest > 0 else rows_KD
    count = len(rows_KD)
    found_K, _ = nnls(np.vstack([scaled.T, np.ones(count)]), np.append(np.zeros(rows_KD.shape[1]), 1.0))
    return found_K / found_K.sum()


def _towards(gram_KK: np.ndarray, weights_K: np.ndarray, *, mixture_K: np.ndarray, c: float) -> np.ndarray:
    """`g_0 + c ||g_0|| g_p / ||g_p||` in coefficients; g_0 alone where g_p is 0."""
    length_0, length_p = (np.sqrt(max(x @ gram_KK @ x, 0.0)) for x in (weights_K, mixture_K))
    if length_p <= _NULL * np.sqrt(np.diag(gram_KK).max()):
        return weights_K
    return weights_K + c * length_0 / length_p * mixture_K


def _bargain(rows_KK: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """(K,) x > 0 with `x_k (C x)_k = w_k`, C the Gram matrix of these unit rows: a damped Newton's method.

    On `x C x / 2 - sum_k w_k log x_k`, whose second derivative along a move that changes no entry by more than a share
    q of it grows by 1 / (1 - q)^2 at most: `1 / (1 + q)` of the full move is then sure to descend and to stay above 0.
    A ridge of 1e-9 keeps x finite where the rows cancel (there x grows and the step `sum_k x_k g_k` vanishes).
    """
    matrix_KK = rows_KK @ rows_KK.T + 1e-9 * np.eye(len(weights_K))
    x_K = np.sqrt(weights_K)
    for _ in range(200):
        slope_K = rows_KK @ (x_K @ rows_KK) + 1e-9 * x_K - weights_K / x_K
        move_K = -np.linalg.solve(matrix_KK + np.diag(weights_K / x_K**2), slope_K)
        share = np.abs(move_K / x_K).max()
        x_K = x_K + move_K / (1 + share)
        if share < 1e-7:  # the error after a step is the square of that before it
            break
    return x_K
