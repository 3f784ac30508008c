"""The reward that a policy trained by DPO implies: beta times its log-ratio to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError
from align.models import load_tokenizer
from align.models.load import load_to_read
from align.models.reading import Reader, completion_rows, sequence_logprobs
from align.objectives.base import as_texts
from align.objectives.scoring import Reply, as_drawn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


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
        self._loaded: tuple[Loaded, Loaded] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": None}

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: object,
    ) -> list[float | None]:
        prompts, completions = as_texts(prompts, completions)
        if self._loaded is None:
            self._loaded = (_in_memory(self.policy), _in_memory(self.reference))
        # Samples come from a policy of the reference's own family, whose format they are in.
        replies = [as_drawn(tokenizer, completions, completion_ids, same_format=True) for _, tokenizer in self._loaded]
        policy, reference = (
            _logprobs(loaded, prompts, said, batch_size=self.batch_size)
            for loaded, said in zip(self._loaded, replies, strict=True)
        )
        return [self.beta * (own - base) for own, base in zip(policy, reference, strict=True)]


def _in_memory(path: str) -> Loaded:
    return load_to_read(path), load_tokenizer(path)


def _logprobs(loaded: Loaded, prompts: Sequence[str], completions: Sequence[Reply], *, batch_size: int) -> list[float]:
    model, tokenizer = loaded
    reader = Reader(pad_id=tokenizer.pad_token_id, batch_size=batch_size, longest_first=True)
    return sequence_logprobs(model, completion_rows(tokenizer, prompts, completions), reader=reader)
