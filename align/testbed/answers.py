"""Exact answers of a policy on a testbed world: one per prompt, against the reference's leaves, for any preference.

Policies are asked for their leaf distribution and nothing is sampled, so the numbers have no sampling noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.data.answers import ExactAnswer
from align.preferences import Weights
from align.testbed.exact import Outcome, TreePolicy, outcome
from align.testbed.optimum import OptimumPoint, RewardClasses, optimum, reward_classes
from align.testbed.transport import control_of, plain_of, transported
from align.testbed.world import Prompt, World

if TYPE_CHECKING:
    from torch import Tensor

NO_SHIFT = "none"


class ReferenceTables:
    """The reference policy's leaf table and reward classes on each prompt, computed once per prompt and kept.

    A table holds N x V float64: 14 MB for the default world, so its 108 test prompts take 1.5 GB. `keep=False`
    recomputes.
    """

    def __init__(self, world: World, reference: TreePolicy, *, keep: bool = True) -> None:
        self.world, self.reference, self.keep = world, reference, keep
        self._leaves: dict[str, Tensor] = {}
        self._classes: dict[str, RewardClasses] = {}

    def leaves(self, prompt: Prompt) -> Tensor:
        """(N, V) log-probabilities of the reference's leaves."""
        found = self._leaves.get(prompt.text)
        if found is None:
            found = self.reference.leaf_logprobs(self.world, prompt)
            if self.keep:
                self._leaves[prompt.text] = found
        return found

    def classes(self, prompt: Prompt) -> RewardClasses:
        """The reference's mass on each reward vector of the prompt."""
        if prompt.text not in self._classes:
            self._classes[prompt.text] = reward_classes(self.world, prompt, self.leaves(prompt))
        return self._classes[prompt.text]

    def leaf_logprobs(self, world: World, prompt: Prompt) -> Tensor:
        """The kept table: the reference itself as a tree policy, for policies in closed form."""
        return self.leaves(prompt)

    name = "reference"
    samples_per_response = 1


@dataclass(frozen=True)
class Measured:
    """The exact outcome on a prompt; under a shift also that of the transported policy there, and the control."""

    outcome: Outcome
    carried: Outcome | None = None
    control: Prompt | None = None


def outcomes(policy: TreePolicy, *, prompts: Sequence[Prompt], tables: ReferenceTables) -> list[Outcome]:
    """The exact outcome of a policy on each prompt; the preference does not enter here."""
    return [
        outcome(tables.world, prompt, policy.leaf_logprobs(tables.world, prompt), tables.leaves(prompt))
        for prompt in prompts
    ]


def under_shift(policy: TreePolicy, *, prompts: Sequence[Prompt], tables: ReferenceTables) -> list[Measured]:
    """`outcomes`, with what carries over from the plain prompt of each base item, where there is one."""
    world, measured = tables.world, []
    for prompt, result in zip(prompts, outcomes(policy, prompts=prompts, tables=tables), strict=True):
        plain = plain_of(world, prompt)
        if plain is None:
            measured.append(Measured(result))
            continue
        carried_NV = transported(
            plain_NV=policy.leaf_logprobs(world, plain), reference_plain_NV=tables.leaves(plain),
            reference_NV=tables.leaves(prompt), spelling=prompt.spelling,
        )  # fmt: skip
        carried = outcome(world, prompt, carried_NV, tables.leaves(prompt))
        measured.append(Measured(result, carried, control_of(world, prompt)))
    return measured


def answers_of(
    results: Mapping[Prompt, Measured], *, row: str, shift: str, weights: Weights, tables: ReferenceTables
) -> Iterator[ExactAnswer]:
    """Answers whose outcomes are judged at one preference: J, the optimum's J and the regret, prompt by prompt."""
    beta = tables.world.config.beta
    for prompt, measured in results.items():
        result, best = measured.outcome, _best(tables, prompt, weights)
        value = result.objective_value(weights, beta=beta)
        parts = {}
        if measured.carried is not None and measured.control is not None:
            parts["J_star_control"] = _best(tables, measured.control, weights).J
            parts["regret_carried"] = best.J - measured.carried.objective_value(weights, beta=beta)
        yield ExactAnswer(
            row=row, preference=weights.values, shift=shift, item=prompt.item, prompt=prompt.text,
            values=result.values, kl=result.kl, J=value, J_star=best.J, regret=best.J - value,
            values_star=tuple(best.values), kl_star=best.kl, malformed=result.malformed, **parts,
        )  # fmt: skip


def _best(tables: ReferenceTables, prompt: Prompt, weights: Weights) -> OptimumPoint:
    return optimum([tables.classes(prompt)], weights, beta=tables.world.config.beta)


def exact_answers(
    policy: TreePolicy, *, row: str, weights: Sequence[Weights], shifts: Sequence[str], tables: ReferenceTables
) -> list[ExactAnswer]:
    """Answers of one policy at every given preference, under every given shift ("none" is in distribution)."""
    answers: list[ExactAnswer] = []
    for shift in shifts:
        prompts = tables.world.train_prompts if shift == "train" else tables.world.test_prompts(shift)
        if shift in ("train", NO_SHIFT):
            measured = [Measured(result) for result in outcomes(policy, prompts=prompts, tables=tables)]
        else:
            measured = under_shift(policy, prompts=prompts, tables=tables)
        results = dict(zip(prompts, measured, strict=True))
        for preference in weights:
            answers.extend(answers_of(results, row=row, shift=shift, weights=preference, tables=tables))
    return answers
