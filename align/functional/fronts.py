"""Sets of trade-off points: non-dominated, hypervolume, utility, controllability, exchange rate, regret; pure.

Everything is maximised. Shapes: N points, M points or preferences of a second set, K objectives.
The geometry is computed by moocore; definitions follow the usual multi-objective literature and are stated below.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

Array = ArrayLike


def _points(values: Array, name: str, columns: int | None = None) -> np.ndarray:
    """`values` as a finite two-dimensional float array, or ValueError naming `name`."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] == 0:
        raise ValueError(f"{name} must be a non-empty table of points x objectives, not of shape {array.shape}")
    if columns is not None and array.shape[1] != columns:
        raise ValueError(f"{name} has {array.shape[1]} objectives where {columns} are expected")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a value that is not finite")
    return array


def _vector(values: Array, name: str, length: int | None = None) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or (length is not None and len(array) != length):
        raise ValueError(f"{name} must be a vector{'' if length is None else f' of {length}'}, not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a value that is not finite")
    return array


def nondominated(points_NK: Array) -> np.ndarray:
    """Boolean mask of shape N: true where no other point is at least as good everywhere and better somewhere.

    Equal points do not dominate each other, so duplicates of a front point all stay. No tolerance: an epsilon hides
    dominated points.
    """
    import moocore

    points = _points(points_NK, "points_NK")
    return np.asarray(moocore.is_nondominated(points, maximise=True, keep_weakly=True), dtype=bool)


def hypervolume(points_NK: Array, *, ref_point: Array) -> float:
    """Volume that the points dominate above `ref_point` (shape K), in the product of the objectives' units.

    The reference point is never fitted to the points: publish it with the number. A point that does not lie above it
    in every objective adds nothing.
    """
    import moocore

    points = _points(points_NK, "points_NK")
    reference = _vector(ref_point, "ref_point", points.shape[1])
    return float(moocore.hypervolume(points, reference, maximise=True))


def expected_utility(points_NK: Array, *, weights_MK: Array) -> float:
    """Mean over preferences of the best `w.y` in the set (EUM): an oracle picks the point for each preference."""
    points = _points(points_NK, "points_NK")
    weights = _points(weights_MK, "weights_MK", points.shape[1])
    return float((weights @ points.T).max(axis=1).mean())


def conditioned_utility(points_NK: Array, *, weights_NK: Array) -> float:
    """Mean over preferences of `w.y(w)`: row n is what was obtained when row n was asked for (MIP, mean inner product).

    Never above `expected_utility`; the difference is what the family loses by not answering as asked, or the KL that
    another preference happened to spend, so compare at matched KL or compare J.
    """
    points = _points(points_NK, "points_NK")
    weights = _points(weights_NK, "weights_NK", points.shape[1])
    if len(weights) != len(points):
        raise ValueError(f"weights_NK has {len(weights)} rows for {len(points)} points: one preference per point")
    return float((weights * points).sum(axis=1).mean())


def kendall_tau(values_N: Array, *, weights_N: Array, tie: float = 0.0) -> float | None:
    """How reliably a larger weight on an objective buys more of it: (concordant - discordant) / comparable pairs.

    A pair of points is comparable when its weights differ; a pair whose values differ by at most `tie` counts 0. So a
    family that ignores the weights gets 0, a strictly monotone one 1, a reversed one -1 (Somers' D of value on weight;
    Kendall's tau where nothing is tied). None when all weights are equal: the question was not asked.
    """
    values = _vector(values_N, "values_N")
    weights = _vector(weights_N, "weights_N", len(values))
    first, second = np.triu_indices(len(values), k=1)
    direction = np.sign(weights[second] - weights[first])
    change = values[second] - values[first]
    agreement = np.where(np.abs(change) <= tie, 0.0, np.sign(change)) * direction
    comparable = int((direction != 0).sum())
    return float(agreement.sum() / comparable) if comparable else None


def controllability(points_NK: Array, *, weights_NK: Array, tie: float = 0.0) -> list[float | None]:
    """`kendall_tau` of each of the K objectives over a sweep of N preferences."""
    points = _points(points_NK, "points_NK")
    weights = _points(weights_NK, "weights_NK", points.shape[1])
    return [kendall_tau(points[:, k], weights_N=weights[:, k], tie=tie) for k in range(points.shape[1])]


def at_common_kl(points_NK: Array, *, kl_N: Array, reference_K: Array, kl: float | None = None) -> np.ndarray:
    """Each point moved along its straight line from the reference model's point to one common KL; shape N x K.

    Near the reference a policy path `r_ref + t (r - r_ref)` spends KL in proportion to `t**2` (exact for Gaussian
    tilting, second order otherwise), so `t = sqrt(kl / kl_n)`. The default is the smallest KL of the set: nothing is
    extrapolated. ValueError where a point spends no KL (it has no direction) or `kl` is not positive.
    """
    points = _points(points_NK, "points_NK")
    spent = _vector(kl_N, "kl_N", len(points))
    reference = _vector(reference_K, "reference_K", points.shape[1])
    if (spent <= 0).any():
        raise ValueError("a point with KL <= 0 cannot be moved to a common KL")
    common = float(spent.min()) if kl is None else float(kl)
    if not common > 0:
        raise ValueError(f"the common KL must be positive, not {common}")
    return reference + np.sqrt(common / spent)[:, None] * (points - reference)


@dataclass(frozen=True)
class ExchangeRates:
    """Slopes d r_of / d r_per between neighbours of a front at one KL, sorted by r_per."""

    slopes: tuple[float | None, ...]  # one per pair of neighbours; None where r_per does not change
    order: tuple[int, ...]  # the points' indices, sorted by r_per
    overall: float | None  # slope of the secant between the two ends


def exchange_rate(points_NK: Array, *, of: int, per: int, tie: float = 1e-12) -> ExchangeRates:
    """What one unit of objective `per` costs in objective `of` along a front whose points spend the SAME KL.

    On an exact front at fixed KL the slope at the optimum of weights w is `-w_per / w_of` (the supporting line). At
    fixed beta it is not, since the points then differ in KL: bring measured points to a common KL first
    (`at_common_kl`). With more than two objectives the points must form a path along which the others are not asked
    for. Units: those of `of` per unit of `per`; negative where the two conflict.
    """
    points = _points(points_NK, "points_NK")
    if of == per:
        raise ValueError("an exchange rate needs two different objectives")
    order = np.lexsort((-points[:, of], points[:, per]))

    def slope(left: int, right: int) -> float | None:
        bought = points[right, per] - points[left, per]
        return None if abs(bought) <= tie else float((points[right, of] - points[left, of]) / bought)

    slopes = tuple(slope(a, b) for a, b in zip(order[:-1], order[1:], strict=True))
    return ExchangeRates(slopes, tuple(int(i) for i in order), slope(order[0], order[-1]))


def regret_share(regrets_M: Array, *, reference_regrets_M: Array) -> float:
    """Mean regret over preferences, as a share of the reference model's over the same preferences.

    0 = the optimum, 1 = no better than doing nothing. ValueError where the reference has no regret to share.
    """
    regrets = _vector(regrets_M, "regrets_M")
    reference = _vector(reference_regrets_M, "reference_regrets_M", len(regrets))
    if len(regrets) == 0 or reference.mean() <= 0:
        raise ValueError("the reference model has no regret: a share of it is not defined")
    return float(regrets.mean() / reference.mean())
