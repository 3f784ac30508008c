"""Pools of judged samples of a policy and its reference in memory: what the four parts of a drop are estimated from.

The outcome space is that of responses of at most `max_new_tokens` tokens: one that was cut is an outcome like any
other, at the log-probability of its tokens, so that all sources mean the same by a response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.errors import UserError
from align.models.sampling import Drawn
from align.policies.base import Policy
from evals.attribution.sampled_parts import SOURCES, Pool, sampled_parts
from evals.items import Json, seed_of
from evals.measure.sampling import Sampling

Rows = Sequence[Mapping[str, str]]
Reward = Callable[[Sequence[str], Sequence[Drawn]], np.ndarray]  # (plain prompts, responses) -> (N,) w.r


@dataclass(frozen=True)
class Asked:
    """One request as it is plain, behind the matched control of a shift, and under the shift; `item` its base item."""

    item: str
    plain: str
    control: str
    shifted: str


def asked_of(plain: Rows, *, shifted: Rows, control: Rows | None) -> list[Asked]:
    """The requests that all sides have, paired by item and, where an item has several prompts, by their order.

    Without a control the shift stands in for it. UserError where no request, or another number of prompts of an item,
    is on a side.
    """
    sides = [_by_item(rows) for rows in (plain, shifted if control is None else control, shifted)]
    items = [item for item in sides[2] if all(item in side for side in sides)]
    if not items:
        raise UserError("no base item is on both sides: give the shifted rows the `item` or `id` of their plain rows")
    odd = next((item for item in items if len({len(side[item]) for side in sides}) > 1), None)
    if odd is not None:
        raise UserError(f"item {odd!r} has another number of prompts under the shift; give as many, in the same order")
    return [Asked(item, *texts) for item in items for texts in zip(*(side[item] for side in sides), strict=True)]


def _by_item(rows: Rows) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["item"], []).append(row["prompt"])
    return found


def parts_of(
    policy: Policy, reference: Policy, *, asked: Sequence[Asked], reward: Reward, beta: float, sampling: Sampling
) -> Json:
    """`sampled_parts` of a policy from `sampling.samples` responses of every request and source, over base items.

    Every source draws with seeds of its own. UserError for a policy without log-probabilities of its own responses.
    """
    if policy.samples_per_response > 1:
        raise UserError(f"{policy.name} chooses among several samples: its responses have no log-probability")
    texts = {name: [getattr(one, name) for one in asked] for name in ("plain", "control", "shifted")}
    places = {
        source: (policy if source.startswith("policy") else reference, texts[source.split("_")[1]])
        for source in SOURCES
    }
    alone = texts["control"] == texts["shifted"]
    drawn = {source: sampling.samples for source in SOURCES if not (alone and source == "reference_control")}
    responses = []  # one entry a draw: a response for every request
    for source, count in drawn.items():
        model, prompts = places[source]
        for k in range(count):
            seed = seed_of("parts", sampling.seed, source, k) % 2**32
            responses.append(
                model.draw(prompts, max_new_tokens=sampling.max_new_tokens, seed=seed, batch_size=sampling.batch_size)
            )
    values_NP = np.stack([reward(texts["plain"], each) for each in responses])
    logp = {
        source: np.array([model.sequence_logprobs(prompts, each) for each in responses])
        for source, (model, prompts) in places.items()
    }
    pools = {
        str(p): Pool(values_NP[:, p], {source: logp_NP[:, p] for source, logp_NP in logp.items()}, drawn)
        for p in range(len(asked))
    }
    return sampled_parts(pools, beta=beta, clusters={str(p): one.item for p, one in enumerate(asked)})
