"""What a trainer is given, and what it gives back: prompts, rewards, weights, beta, a reference, a budget -> a policy.

A trainer is a function `train(case) -> policy`, in any framework. A policy is a folder with a causal language model,
such a model in memory, or a function from a prompt to the probabilities of `case.replies`.
Legend: P prompts, M leaves of a prompt's tree, K objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from align.errors import UserError
from align.testbed.theory.fixed_points import Levels, leaf_logprobs
from align.testbed.theory.hypotheses import Asked
from recipes.conformance import world

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Policy: TypeAlias = "str | Path | PreTrainedModel | Callable[[str], Sequence[float]]"
Trainer: TypeAlias = "Callable[[Case], Policy]"
OPINIONS = 8  # rows that show the same two replies
SMALLEST = 1e-12  # probabilities below it are raised to it, so that every KL is a number


@lru_cache(maxsize=4)
def reference_levels(reference: str) -> Levels:
    """The reference's exact conditionals, read once."""
    from align.models import load_model

    return world.read(load_model(reference))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing asked of a trainer: `E[w.r] - beta KL(pi || reference)`, from a budget of replies.

    reference: the folder of the model to start from, to which KL is measured. budget: replies that training may read,
    drawn by itself or given in `pairs`. tau: the temperature of the labels of pairs. objectives: TRL's reward
    functions, each under its name.
    """

    reference: str
    folder: Path
    weights: tuple[float, ...] = (0.7, 0.3)
    beta: float = 1.2
    tau: float = 0.8
    budget: int = 24_000
    seed: int = 0
    prompts: tuple[str, ...] = world.PROMPTS
    replies: tuple[str, ...] = world.REPLIES
    longest: int = world.LENGTH + 1  # tokens of the longest reply, its end included
    objectives: Mapping[str, world.Reward] = field(
        default_factory=lambda: {name: world.Reward(k) for k, name in enumerate(world.OBJECTIVES)}
    )

    def score(self, prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        """w.r of replies."""
        columns = [objective(prompts, replies) for objective in self.objectives.values()]
        return [sum(w * r for w, r in zip(self.weights, row, strict=True)) for row in zip(*columns, strict=True)]

    def comparisons(self, count: int) -> list[dict[str, object]]:
        """Two different replies of the reference a row, as `a` and `b`, with their `scores_a` and `scores_b` (K).

        Each two are in `OPINIONS` rows, whose uniform draws `u` are stratified: labels are those of an annotator asked
        so many times, to within one answer. What is left over of `count` is not given.
        """
        rng = np.random.default_rng([self.seed, 1])
        rewards, p = world.rewards(), np.exp(self.asked.formed(self.leaves(reference_levels(self.reference))))
        rows: list[dict[str, object]] = []
        for x in rng.integers(len(self.prompts), size=count // OPINIONS).tolist():
            a, b = rng.choice(len(self.replies), size=2, replace=False, p=p[x]).tolist()
            texts = {"prompt": self.prompts[x], "a": f" {self.replies[a]}", "b": f" {self.replies[b]}"}
            scores = {"scores_a": rewards[x, a].tolist(), "scores_b": rewards[x, b].tolist()}
            draws = (np.arange(OPINIONS) + rng.random()) / OPINIONS
            rows += [{"id": str(len(rows) + i), **texts, **scores, "u": u} for i, u in enumerate(draws.tolist())]
        order = rng.permutation(len(rows)).tolist()
        for objective in self.objectives.values():
            objective.scored += 2 * len(rows)
        return [rows[i] for i in order]

    def pairs(self, count: int) -> list[dict[str, str]]:
        """`prompt`, `chosen`, `rejected`: a wins with probability sigmoid((w.r(a) - w.r(b)) / tau).

        DPO's own beta is then `beta / tau`.
        """
        rows = []
        for row in self.comparisons(count):
            margin = float(np.dot(self.weights, np.subtract(row["scores_a"], row["scores_b"])))  # type: ignore[call-overload]
            first, second = ("a", "b") if row["u"] < 1 / (1 + np.exp(-margin / self.tau)) else ("b", "a")  # type: ignore[operator]
            rows.append({"prompt": str(row["prompt"]), "chosen": str(row[first]), "rejected": str(row[second])})
        return rows

    def labelled(self, count: int) -> list[dict[str, object]]:
        """`prompt`, `completion`, `label`: the sides of `pairs(count // 2)` one by one, in random order."""
        rows: list[dict[str, object]] = [
            {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
            for pair in self.pairs(count // 2) for side in ("chosen", "rejected")
        ]  # fmt: skip
        return [rows[i] for i in np.random.default_rng([self.seed, 2]).permutation(len(rows)).tolist()]

    def at(self, *, beta: float, share: float, folder: Path) -> Case:
        """The same at another beta, or at a share of the budget; what it scores is counted anew."""
        fresh = {name: world.Reward(reward.index) for name, reward in self.objectives.items()}
        return replace(self, beta=beta, budget=round(share * self.budget), folder=folder, objectives=fresh)

    @property
    def asked(self) -> Asked:
        """The case as exact arithmetic sees it."""
        tree = world.tree(reference_levels(self.reference))
        return Asked(
            tree=tree, weights=self.weights, beta=self.beta, others=world.OTHERS, replies=world.reply_leaves(),
            tau=self.tau,
        )  # fmt: skip

    def leaves(self, levels: Levels) -> np.ndarray:
        """(P, M) log-probabilities of the leaves from conditionals."""
        return leaf_logprobs(world.tree(reference_levels(self.reference)), levels)

    def read(self, policy: Policy) -> np.ndarray:
        """(P, M) exact log-probabilities of a trained policy's leaves; UserError on what is none."""
        if isinstance(policy, (str, Path)):
            from align.models import load_model

            return self._floored(self.leaves(world.read(load_model(str(policy)))))
        if hasattr(policy, "forward"):
            return self._floored(self.leaves(world.read(policy)))  # type: ignore[arg-type]
        if not callable(policy):
            raise UserError(
                f"train(case) returned {type(policy).__name__}; return a model's folder, a causal model, or a function "
                "from a prompt to the probabilities of case.replies"
            )
        return self._from_probabilities(policy)

    def _from_probabilities(self, policy: Callable[[str], Sequence[float]]) -> np.ndarray:
        """What a prompt's probabilities leave over is malformed, in the reference's proportions."""
        reply, logp = world.reply_leaves(), self.leaves(reference_levels(self.reference)).copy()
        malformed = np.setdiff1d(np.arange(logp.shape[-1]), reply)
        for x, prompt in enumerate(self.prompts):
            p = np.asarray(policy(prompt), float)
            if p.shape != (len(reply),) or not (p >= 0).all() or not p.sum() <= 1 + 1e-6:
                raise UserError(
                    f"the policy's probabilities on {prompt!r} must be {len(reply)} numbers of at least 0 that sum to "
                    f"at most 1, in the order of case.replies; shape {p.shape}, sum {p.sum():g}"
                )
            rest = np.exp(logp[x, malformed])
            left = max(1 - p.sum(), SMALLEST) / rest.sum()
            logp[x, malformed] = np.log(rest * left)
            logp[x, reply] = np.log(np.maximum(p, SMALLEST))
        return self._floored(logp)

    def _floored(self, logp: np.ndarray) -> np.ndarray:
        if not np.isfinite(logp).all():
            raise UserError("the trained policy has probabilities that are no numbers; lower the learning rate")
        return np.maximum(logp, np.log(SMALLEST))
