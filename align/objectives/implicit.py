"""The reward that a policy trained by DPO implies: beta times its log-ratio to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.objectives.base import check_texts


class ImplicitReward:
    """`beta (log pi(y|x) - log pi_ref(y|x))`, the completion's tokens and its end token summed, in nats times beta.

    Rafailov et al. 2023, equation 5; it equals the reward up to a constant per prompt. `policy` and `reference` are
    runs, model directories or hub ids; both are loaded at the first call and left out of pickles.
    """

    learned = True  # from data: rows that it trains are reported as such

    def __init__(
        self, policy: str | Path, reference: str | Path, *, beta: float, name: str | None = None, batch_size: int = 32
    ) -> None:
        if not beta > 0:
            raise UserError(f"an implicit reward needs beta above 0, not {beta}")
        self.policy = str(policy)
        self.reference = str(reference)
        self.beta = float(beta)
        self.batch_size = batch_size
        self.__name__ = name or f"implicit_{Path(policy).name}"
        self._loaded: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        check_texts(prompts, completions)
        if self._loaded is None:
            from align.policies.base import ModelPolicy

            self._loaded = (ModelPolicy(self.policy), ModelPolicy(self.reference))
        policy, reference = (
            model.sequence_logprobs(list(prompts), list(completions), batch_size=self.batch_size)
            for model in self._loaded
        )
        return [self.beta * (own - base) for own, base in zip(policy, reference, strict=True)]
