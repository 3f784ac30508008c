"""Transported policies of a world: what was learned on plain prompts, carried over whole to a shifted reference.

A shifted prompt has a plain one of the same base item, and a matched control: the same surface with nothing adversarial
in it. Leaves are matched through the spelling. Legend: N nodes, V vocabulary.
"""

from __future__ import annotations

import torch

from align.testbed.exact import TreePolicy
from align.testbed.vocabulary import alphabet_ids
from align.testbed.world import Prompt, World

# Behind the compliance prefix the neutral one is the control; every other shift has no adversarial words.
CONTROLS = {"compliance": "control", "cipher_compliance": "cipher_control"}


def plain_of(world: World, prompt: Prompt) -> Prompt | None:
    """The held-out plain prompt of the same base item; None where a shift brings items of its own."""
    return next((plain for plain in world.test_prompts("none") if plain.item == prompt.item), None)


def control_of(world: World, prompt: Prompt) -> Prompt:
    """The matched control of a shifted prompt: the prompt itself where nothing in it is adversarial."""
    split = CONTROLS.get(prompt.split)
    if split is None:
        return prompt
    return next(control for control in world.test_prompts(split) if control.item == prompt.item)


def transported(
    *, plain_NV: torch.Tensor, reference_plain_NV: torch.Tensor, reference_NV: torch.Tensor, spelling: int
) -> torch.Tensor:
    """(N, V) log-probabilities of `pi_T ∝ ref_s pi_id / ref_id` on the leaves of a prompt in `spelling`.

    The first two are the policy's and the reference's on the plain prompt, the third is the shifted prompt's reference.
    """
    order = torch.arange(plain_NV.shape[1])
    plain, spelt = (torch.tensor(alphabet_ids(s)) for s in (0, spelling))
    order[plain], order[spelt] = spelt, plain
    policy_NV, reference_plain_NV = plain_NV[:, order], reference_plain_NV[:, order]
    has_mass_NV = torch.isfinite(policy_NV) & torch.isfinite(reference_NV)
    learned_NV = torch.where(has_mass_NV, policy_NV - reference_plain_NV, -torch.inf)
    logits_NV = torch.where(has_mass_NV, reference_NV + learned_NV, -torch.inf)
    return logits_NV - logits_NV.flatten().logsumexp(0)


class Remembered:
    """A tree policy whose leaves on the plain held-out prompts are kept: every shift of an item needs them again."""

    def __init__(self, policy: TreePolicy) -> None:
        self.policy, self.name, self.samples_per_response = policy, policy.name, policy.samples_per_response
        self._kept: dict[str, torch.Tensor] = {}

    def leaf_logprobs(self, world: World, prompt: Prompt) -> torch.Tensor:
        """(N, V) log-probability of every leaf."""
        if prompt.split != "none":
            return self.policy.leaf_logprobs(world, prompt)
        if prompt.text not in self._kept:
            self._kept[prompt.text] = self.policy.leaf_logprobs(world, prompt)
        return self._kept[prompt.text]
