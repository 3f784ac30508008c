"""Policies in closed form on a world: the optimum, the controls that every gate must fail, facts about the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from align.errors import UserError
from align.preferences import Weights, simplex_grid
from align.testbed.world import World

if TYPE_CHECKING:  # a plan and a help text name the controls without torch
    from align.testbed.answers import ReferenceTables
    from align.testbed.exact import TreePolicy

KINDS = ("reference", "optimum", "perturbed", "kl_overspender", "length_only", "best_of_n")


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Of the closed forms: pi* at another `temperature`, beta / `overspend`, best of `n`."""

    temperature: float
    overspend: float
    n: int


def closed_form_policy(kind: str, *, reference: ReferenceTables, weights: Weights, options: Controls) -> TreePolicy:
    """The tree policy of a closed-form row; UserError on an unknown kind.

    reference: the reference itself. optimum: pi*_w. perturbed: pi*_w at another temperature. kl_overspender: the
    optimum of beta / `overspend`. length_only: the best policy for a length-only reward model. best_of_n: soft
    best-of-n of the gold sum, n draws for each response.
    """
    from align.testbed.tabular import SoftBestOfN, Tilted, gold_table, length_table

    beta = reference.world.config.beta
    gold = partial(gold_table, weights=weights)
    if kind == "reference":
        return reference
    if kind == "optimum":
        return Tilted(reference, gold, beta, kind)
    if kind == "perturbed":
        return Tilted(reference, gold, beta, kind, temperature=options.temperature)
    if kind == "kl_overspender":
        return Tilted(reference, gold, beta / options.overspend, kind)
    if kind == "length_only":
        return Tilted(reference, length_table, beta, kind)
    if kind == "best_of_n":
        return SoftBestOfN(reference, gold, beta, options.n, kind)
    raise UserError(f"no closed form {kind!r}; there are {', '.join(KINDS)}")


def optimum_facts(
    tables: ReferenceTables, *, weights: Sequence[Weights], dense: int, temperature: float
) -> dict[str, object]:
    """JSON-ready: the dense exact front, reward classes per prompt, the regret that beta KL predicts, the dial."""
    from align.testbed.optimum import front

    world = tables.world
    prompts = world.test_prompts("none")
    classes = [tables.classes(p) for p in prompts]
    grid = simplex_grid(len(world.objectives), dense if len(world.objectives) == 2 else 20)
    points = front(classes, grid, beta=world.config.beta)
    return {
        "front": [
            {"preference": list(w.values), "values": list(p.values), "kl": p.kl, "J": p.J}
            for w, p in zip(grid, points, strict=True)
        ],
        "classes": [
            {"rewards": c.rewards_CK.tolist(), "log_mass": c.log_mass_C.tolist(), "item": p.item}
            for p, c in zip(prompts, classes, strict=True)
        ],
        "perturbed": {
            "temperature": temperature,
            "predicted": [_predicted_regret(tables, w, temperature=temperature) for w in weights],
        },
        "dial": {str(dial): _front_span(tables, dial) for dial in (0.0, 0.25, 0.5, 0.75, 1.0)},
    }


def _predicted_regret(tables: ReferenceTables, weights: Weights, *, temperature: float) -> float:
    """beta KL(perturbed || pi*_w), leaf by leaf, averaged over in-distribution prompts."""
    from align.testbed.tabular import Tilted, gold_table

    world, beta = tables.world, tables.world.config.beta
    gold = partial(gold_table, weights=weights)
    star, other = (Tilted(tables, gold, beta, "optimum", temperature=t) for t in (1.0, temperature))
    total = 0.0
    prompts = world.test_prompts("none")
    for prompt in prompts:
        p_NV, q_NV = other.leaf_logprobs(world, prompt), star.leaf_logprobs(world, prompt)
        finite = p_NV.isfinite()
        total += float((p_NV[finite].exp() * (p_NV[finite] - q_NV[finite])).sum())
    return beta * total / len(prompts)


def _front_span(tables: ReferenceTables, dial: float) -> float:
    """Span of the exact front over the weights, in the widest objective, at one setting of the conflict dial.

    In units of the reward range of well-formed responses, which is 1. Uses the same reference model and prompts.
    """
    import numpy as np

    from align.testbed.optimum import optimum_on, reward_classes

    world = World(replace(tables.world.config, conflict=dial))
    classes = [reward_classes(world, p, tables.leaves(p)) for p in tables.world.test_prompts("none")]
    grid = simplex_grid(len(world.objectives), 10)
    values_NK = np.array(
        [np.mean([optimum_on(c, np.array(w.values) / world.config.beta)[0] for c in classes], axis=0) for w in grid]
    )
    return float((values_NK.max(0) - values_NK.min(0)).max())
