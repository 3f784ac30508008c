"""Answers to the shifts table: gaps against the reference, gain retained, the parts of a drop; pure.

Shapes: M preferences, G base items, K objectives. A gap is the method's drop minus the reference model's: positive is
worse. Every interval runs over base items (the topic, or the prompt), never over spellings or samples of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.data.answers import Answer, ExactAnswer
from align.errors import UserError
from evals.items import NO_SHIFT, Fields, Json
from evals.stats import intervals as stats
from evals.tables.surfaces import Preference, Surface, row_names, surface, volumes
from evals.tables.under_shift.parts import drop_parts, no_parts, objectives_disagree


def _paired_items(home: Sequence[str], away: Sequence[str]) -> list[str]:
    """Base items measured in both; empty means that the shift changed the items themselves."""
    there = set(away)
    return [item for item in home if item in there]


def gap_interval(
    own_home: Surface, own_away: Surface, *, ref_home: Surface, ref_away: Surface, preference: Preference, k: int
) -> stats.Interval:
    """The method's drop in objective k minus the reference's, at one preference, with its interval over base items.

    Base items weigh equally. Where the shift keeps the base items, each is its own pair of pairs; where it replaces
    them (held-out topics) the lead over the reference is compared between two sets of items, unpaired, as `over`
    states. UserError when method and reference were not measured on the same items.
    """

    def lead(own: Surface, ref: Surface) -> dict[str, float]:
        if own.items != ref.items:
            raise UserError(f"cells: rows '{own.row}' and '{ref.row}' differ in base items under shift '{own.shift}'")
        row, reference = own.item_means(preference), ref.item_means(ref_preference(ref, preference))
        return {item: float(row[item][k] - reference[item][k]) for item in own.items}

    home, away = lead(own_home, ref_home), lead(own_away, ref_away)
    shared = _paired_items(own_home.items, own_away.items)
    if not shared:
        return stats.unpaired_difference(
            list(home.values()), second_M=list(away.values()), clusters_N=list(home), clusters_M=list(away)
        )
    over = "base items, paired"
    if len(shared) < max(len(home), len(away)):
        over += f" (of {len(home)} in distribution and {len(away)} under the shift)"
    return stats.paired_difference({i: home[i] for i in shared}, second={i: away[i] for i in shared}, over=over)


def ref_preference(ref: Surface, preference: Preference) -> Preference:
    """The reference model's answers for a preference; its values do not depend on it, so any it has will do."""
    return preference if preference in ref.preferences else ref.preferences[0]


def gain_retained(gain_home: np.ndarray, gain_away: np.ndarray, *, home: int, away: int, paired: bool) -> Json:
    """`(HV_s(method) - HV_s(ref)) / (HV_id(method) - HV_id(ref))` with a bootstrap over base items.

    The gains hold the estimate and then the bootstrap draws; `home` and `away` count base items. Of the gain, not of
    the level: doing nothing would retain all of its level. Null with the reason where the interval of the denominator
    includes 0, or where the row loses in distribution.
    """
    below = stats.bootstrap_interval(gain_home[1:], estimate=float(gain_home[0]), n=home)
    result: Json = {"gain_id": below.estimate, "gain_id_ci": below.pair, "gain_shift": float(gain_away[0])}
    if not below.excludes_zero:
        words = below.says if below.pair is None else f"its interval, {below.says}, includes 0"
        reason = f"null: the gain in distribution is not distinguishable from none ({words})"
        return result | {"gain_retained": None, "gain_retained_ci": None, "gain_retained_over": reason}
    if below.estimate < 0:  # a share of a loss would read as a gain
        reason = f"null: the row loses hypervolume in distribution ({below.says})"
        return result | {"gain_retained": None, "gain_retained_ci": None, "gain_retained_over": reason}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(gain_home > 0, gain_away / gain_home, np.nan)
    estimate = float(gain_away[0] / gain_home[0])
    over = "base items, paired" if paired else f"base items ({home} and {away} others, resampled separately)"
    interval = stats.bootstrap_interval(ratios[1:], estimate=estimate, n=home if paired else home + away, over=over)
    return result | {
        "gain_retained": interval.estimate,
        "gain_retained_ci": interval.pair,
        "gain_retained_over": interval.says,
    }


def _headline(gaps: Sequence[Fields], *, objectives: Sequence[str], headline: str) -> Json:
    """The gap that heads a row: the named objective where it alone was asked for."""
    vertex = [1.0 if name == headline else 0.0 for name in objectives]
    heads = [g for g in gaps if g["objective"] == headline and g["preference"] == vertex]
    named = {"objective": headline, "preference": vertex, "baseline": "reference"}
    if not heads:
        why = f"null: the row has no point that asks for {headline} alone"
        return {"gap": None, "gap_ci": None, "gap_of": named | {"over": why, "n": 0}}
    (top,) = heads
    return {"gap": top["gap"], "gap_ci": top["ci"], "gap_of": named | {"over": top["over"], "n": top["n"]}}


@dataclass
class _Measured:
    """The answers behind one table, with every surface and every bootstrap of a hypervolume computed once."""

    answers: Sequence[Answer]
    reference_point: Sequence[float]
    draws: int
    seed: int

    def __post_init__(self) -> None:
        self._volumes: dict[tuple[str, str, tuple[Preference, ...]], np.ndarray] = {}
        self._answers: dict[tuple[str, str], list[Answer]] = {}
        for answer in self.answers:
            self._answers.setdefault((answer.row, answer.shift), []).append(answer)

    def of(self, row: str, shift: str) -> list[Answer]:
        return self._answers.get((row, shift), [])

    def exact(self, row: str, shift: str) -> list[ExactAnswer]:
        return [answer for answer in self.of(row, shift) if isinstance(answer, ExactAnswer)]

    def surfaces(self, row: str, shift: str) -> tuple[Surface, Surface]:
        """The row in distribution and under the shift, at the preferences measured under the shift."""
        home, away = surface(self.of(row, NO_SHIFT), row=row), surface(self.of(row, shift), row=row, shift=shift)
        unknown = [list(p) for p in away.preferences if p not in home.preferences]
        if unknown:
            raise UserError(f"cells: row '{row}' has preference {unknown[0]} under '{shift}' only; evaluate both sides")
        return home.only(away.preferences), away

    def volumes(self, own: Surface) -> np.ndarray:
        key = (own.row, own.shift, own.preferences)
        if key not in self._volumes:
            counts_DG = stats.cluster_counts(own.items, draws=self.draws, seed=self.seed)
            self._volumes[key] = volumes(own, counts_DG=counts_DG, ref_point=self.reference_point)
        return self._volumes[key]


def _gaps(own: tuple[Surface, Surface], ref: tuple[Surface, Surface], objectives: Sequence[str]) -> list[Json]:
    """The gap of every objective at every preference."""
    gaps = []
    for preference in own[0].preferences:
        for k, objective in enumerate(objectives):
            interval = gap_interval(*own, ref_home=ref[0], ref_away=ref[1], preference=preference, k=k)
            gap = {"objective": objective, "preference": list(preference), "gap": interval.estimate}
            gaps.append(gap | {"ci": interval.pair, "over": interval.says, "n": interval.n})
    return gaps


def _shift_row(
    measured: _Measured, *, row: str, shift: str, objectives: Sequence[str], headline: str, reference_row: str
) -> Json:
    """`shifts.<shift>.<row>` of summary.json: see `shifts_table`."""
    own, ref = measured.surfaces(row, shift), measured.surfaces(reference_row, shift)
    gaps = _gaps(own, ref, objectives)
    entry: Json = _headline(gaps, objectives=objectives, headline=headline) | {"gaps": gaps}
    if row == reference_row:
        reason = "null: the reference model is the baseline"
        entry |= {"gain_retained": None, "gain_retained_ci": None, "gain_retained_over": reason}
    else:
        gain_home, gain_away = (measured.volumes(o) - measured.volumes(r) for o, r in zip(own, ref, strict=True))
        home, away = own
        entry |= gain_retained(
            gain_home, gain_away, home=len(home.items), away=len(away.items), paired=home.items == away.items
        )
    if not measured.exact(row, shift):
        return entry | no_parts()
    conflict = objectives_disagree(measured.exact(reference_row, shift))
    return entry | drop_parts(measured.exact(row, NO_SHIFT), measured.exact(row, shift)) | {"conflict": conflict}


def shifts_table(
    answers: Sequence[Answer],
    *,
    objectives: Sequence[str],
    headline: str,
    reference_point: Sequence[float],
    reference_row: str = "reference",
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Json]]:
    """`shifts` of summary.json: shift -> row -> gap, gain retained and the parts of its drop, JSON-ready.

    `headline` names the objective whose gap heads each row, at the preference that asks for it alone. A row without
    answers under a shift does not appear there; preferences measured in distribution only are left out of that shift.
    UserError when the reference row lacks a shift that another row has, or items or preferences do not match.
    """
    if headline not in objectives:
        raise UserError(f"shifts: '{headline}' is not one of the objectives {list(objectives)}; name one of them")
    measured = _Measured(answers, reference_point, draws, seed)
    shifts = dict.fromkeys(answer.shift for answer in answers if answer.shift != NO_SHIFT)
    return {
        shift: {
            row: _shift_row(
                measured, row=row, shift=shift, objectives=objectives, headline=headline, reference_row=reference_row
            )
            for row in row_names(answers, shift=shift)
        }
        for shift in shifts
    }
