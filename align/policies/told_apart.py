"""Whether a tagged policy tells preferences apart: the KL per token between what it does at opposite extremes.

A family whose tags were never learned answers every preference alike, and its table is flat without saying why.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align import checks
from align.models.formats import formatter
from align.policies.tagged import TaggedFamily, TaggedPolicy
from align.preferences import Weights

if TYPE_CHECKING:
    from torch import Tensor

PROMPTS, TOKENS = 16, 32  # how much is drawn at each extreme, at most
FLAT = 0.01  # nats a token


@dataclass(frozen=True)
class ToldApart:
    """Mean KL in nats a token between opposite extremes, after training and before it."""

    kl: float
    untrained: float
    tokens: bool  # whether tags are tokens of their own; untrained ones are drawn at random, far from each other

    @property
    def flat(self) -> bool:
        """Whether the preference hardly changes what the policy does, or text tags do no more than they did before."""
        return self.kl < FLAT or (not self.tokens and self.kl <= self.untrained)

    def metrics(self) -> dict[str, float]:
        """The metrics of a run."""
        return {"tags_kl": self.kl, "tags_kl_untrained": self.untrained}

    def tell(self, *, method: str) -> None:
        """A line on stderr where the tags were hardly learned."""
        if self.flat:
            print(
                f"align: warning: {method}: the tags seem not to be learned: between opposite preferences the policy "
                f"differs by {self.kl:.2g} nats a token, before training by {self.untrained:.2g}; train longer, at a "
                "higher learning rate, or on more preferences for each prompt",
                file=sys.stderr,
            )


def extremes_kl(family: TaggedFamily, prompts: Sequence[str], *, seed: int) -> float | None:
    """Mean over tokens of KL(pi_k || pi_j), exact at each token of responses that pi_k draws, j the extreme after k.

    The extremes are the vertices of the weights, asked as the family asks for them. None where there is one objective
    only, or no prompt with room for a response.
    """
    import torch

    count = len(family.tags.names)
    policies = [family.policy(Weights.vertex(k, count)) for k in range(count)]
    for policy in policies[1:]:
        policy.share(policies[0])
    longest = max(policies, key=lambda policy: len(policy.tags.text(policy.values)))
    context, form = checks.context_of(policies[0].model), formatter(policies[0].tokenizer)
    room = {p: TOKENS if context is None else context - len(form.prompt_ids(longest.asked([p])[0])) for p in prompts}
    asked = [prompt for prompt, tokens in room.items() if tokens > 1]
    asked = asked[:: -(-len(asked) // PROMPTS)] if asked else []
    if count < 2 or not asked:
        return None
    total, tokens = 0.0, 0
    most = min(TOKENS, *(room[prompt] - 1 for prompt in asked))  # tags of other numbers may be a token longer
    with torch.random.fork_rng(), torch.inference_mode():
        for policy, other in zip(policies, [*policies[1:], policies[0]], strict=True):
            drawn = policy.draw(asked, max_new_tokens=most, seed=seed, batch_size=PROMPTS)
            for prompt, response in zip(asked, drawn, strict=True):
                p_TV, q_TV = (_logprobs(one, prompt, response.ids) for one in (policy, other))
                total += float((p_TV.exp() * (p_TV - q_TV)).where(p_TV > -torch.inf, 0.0).sum())
                tokens += len(response.ids)
    return total / tokens


def _logprobs(policy: TaggedPolicy, prompt: str, ids: Sequence[int]) -> Tensor:
    """(T, V) log-probabilities of the policy at every token of a response."""
    import torch

    row = torch.tensor([[*policy.prompt_ids([prompt])[0], *ids]], device=policy.model.device)
    logits_TV = policy.model(input_ids=row, logits_to_keep=len(ids) + 1).logits[0, :-1].float()
    logits_TV[:, list(policy.banned)] = -torch.inf
    return logits_TV.log_softmax(-1)
