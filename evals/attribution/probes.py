"""Attribution's probes of a model in memory: what hidden states show of a prompt, and which plain text they match.

Legend: H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evals.attribution.reading import read_prompts
from evals.backends.transformers import TransformersBackend
from evals.items import NO_SHIFT, Missing, Prompt, digest
from evals.measure.cells import Cell
from evals.stats.distances import fit_cloud, log_distance

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Table = dict[str, dict[str, float]]
PairTable = dict[str, dict[tuple[str, str], float]]


def fold(cluster: str) -> int:
    """0 or 1: the half of the base items that one belongs to, by its name alone."""
    return int(digest("fold", cluster)[:8], 16) % 2


def readings_of(
    backend: TransformersBackend, cells: Sequence[Cell], *, layer: int
) -> tuple[dict[str, dict[str, np.ndarray]], Table]:
    """(Hidden states (H) of the prompts' last tokens, refusal margins), each shift -> item; what cannot be read lacks.

    Of several samples the first is read: their prompts may differ, their policy does not.
    """
    first = [cell for cell in cells if cell.sample == 0 and isinstance(cell.prompt, Prompt)]
    readings = read_prompts(backend, [cell.question for cell in first], layer=layer)
    states: dict[str, dict[str, np.ndarray]] = {}
    margins: Table = {}
    for cell, reading in zip(first, readings, strict=True):
        if not isinstance(reading, Missing):
            states.setdefault(cell.shift.name, {})[cell.item.id] = reading.state_H
            margins.setdefault(cell.shift.name, {})[cell.item.id] = reading.margin
    return states, margins


def default_layer(model: PreTrainedModel) -> int:
    """Two thirds of the way up, where harmful and harmless requests separate best in published probes; at least 1."""
    return max(1, round(2 / 3 * int(model.config.num_hidden_layers)))


@dataclass(frozen=True)
class StateViews:
    """What hidden states show: `score` of harmfulness and `distance` from the training prompts, shift -> item."""

    score: Table
    distance: Table


def views_of(
    states: Mapping[str, Mapping[str, np.ndarray]], *, harmful: Mapping[str, str], benign: Mapping[str, str],
    training: Sequence[np.ndarray] = (),
) -> StateViews:  # fmt: skip
    """Score and distance of every state, each half of the base items seen with what the other half taught.

    The score is the projection on the difference of means of plain harmful and harmless requests (Arditi et al. 2024),
    in units of that difference, from the mean of the half's harmless requests under the same shift: what moves all
    requests alike, and lies on each half's direction by chance, is no recognition. A half that lacks one side has
    none. The distance is to the states of at least two `training` prompts, without them to the plain requests of the
    other half; where there are no two of those either, there is none.
    """
    plain, clusters = states.get(NO_SHIFT, {}), {**harmful, **benign}
    score: Table = {shift: {} for shift in states}
    distance: Table = {shift: {} for shift in states}
    for half in (0, 1):
        taught = {i: plain[i] for i, cluster in clusters.items() if i in plain and fold(cluster) != half}
        own = [plain[i] for i, cluster in clusters.items() if i in plain and fold(cluster) == half]
        bad, good = ([taught[i] for i in side if i in taught] for side in (harmful, benign))
        home = training if len(training) > 1 else list(taught.values())
        if not own or len(home) < 2:
            continue
        cloud = fit_cloud(np.stack(home))
        toward_H = np.mean(bad, axis=0) - np.mean(good, axis=0) if bad and good else None
        for shift, rows in states.items():
            inside = [i for i in rows if i in clusters and fold(clusters[i]) == half]
            harmless = [rows[i] for i in inside if i in benign]
            floor_H = np.mean(harmless, axis=0) if harmless else None
            if not inside:
                continue
            far = log_distance(cloud, np.stack([rows[i] for i in inside]), plain_MH=np.stack(own))
            for i, d in zip(inside, far, strict=True):
                distance[shift][i] = float(d)
                if floor_H is not None and toward_H is not None:
                    score[shift][i] = float((rows[i] - floor_H) @ toward_H) / (float(toward_H @ toward_H) or 1.0)
    return StateViews(score, distance)


def matching(
    states: Mapping[str, Mapping[str, np.ndarray]], *, requests: Mapping[str, str], neighbours: int = 2
) -> PairTable:
    """shift -> pair of benign items -> 1 where both shifted texts are matched to their own plain texts, else 0.

    `requests` item -> its plain text. Requests next to each other in length go in pairs, so that length, which every
    disguise lets through, is no help. A pair a, b is matched where `s_a.p_a + s_b.p_b > s_a.p_b + s_b.p_a`: s are the
    hidden states under the shift, p those of the plain requests, each unit standardised over the requests on its own
    side, so that what the shift does to all of them cancels. A tie is 1/2, as chance is; plain text itself has 1.
    """
    plain = states.get(NO_SHIFT, {})
    order = sorted((i for i in requests if i in plain), key=lambda i: (len(requests[i]), i))
    table: PairTable = {}
    for shift, rows in states.items():
        both = [i for i in order if i in rows]
        if len(both) <= neighbours:
            continue
        own_NH, home_NH = (_standardised(np.stack([side[i] for i in both])) for side in (rows, plain))
        alike_NN = own_NH @ home_NH.T
        table[shift] = {}
        for step in range(1, neighbours + 1):
            for a in range(len(both) - step):
                b = a + step
                lead = alike_NN[a, a] + alike_NN[b, b] - alike_NN[a, b] - alike_NN[b, a]
                table[shift][both[a], both[b]] = 0.5 if lead == 0 else float(lead > 0)
    return table


def _standardised(states_NH: np.ndarray) -> np.ndarray:
    spread_H = states_NH.std(0)
    return (states_NH - states_NH.mean(0)) / np.where(spread_H > 0, spread_H, 1.0)
