"""Drawing from the model's own distribution, whatever sampling habits its checkpoint carries; responses as drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from align.models.formats import formatter

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Drawn:
    """A response as it was drawn: token ids (the ending one included, if it came), whether it ended, and its text.

    The text encoded again can be other tokens, and does not tell a response that ended from one that was cut.
    """

    ids: tuple[int, ...]
    ended: bool
    text: str = ""

    @classmethod
    def of(cls, ids: Sequence[int], *, ends: Sequence[int], text: str = "") -> Drawn:
        """From a row of `generate` without its prompt, padded after its end."""
        stop = next((t for t, token in enumerate(ids) if token in ends), None)
        return cls(tuple(ids if stop is None else ids[: stop + 1]), stop is not None, text)


class Told(TypedDict):
    """What objectives are told of samples beside their texts: the ids that were drawn, and which of them ended."""

    completion_ids: list[list[int]]
    completion_ended: list[bool]


def told(drawn: Sequence[Drawn]) -> Told:
    """The columns of these samples for a call of an objective."""
    return {"completion_ids": [list(one.ids) for one in drawn], "completion_ended": [one.ended for one in drawn]}


def ending_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a response: those of the model's generation config, and all of its prompt format.

    The tokenizer's own end token is one of the format's: trainers stop there, too.
    """
    listed = model.generation_config.eos_token_id
    known = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return list(dict.fromkeys([*known, *formatter(tokenizer).format.ends]))


def stop_at(ends: Sequence[int], model: PreTrainedModel) -> None:
    """Let the model's own generation config, which is saved with it, end responses at these tokens."""
    holder = sampled_model(model)
    holder.generation_config.eos_token_id = ends[0] if len(ends) == 1 else list(ends)


def plain_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> GenerationConfig:
    """Temperature 1 and nothing cut off; of the checkpoint's own generation config the ending tokens alone remain."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_tokens,
        eos_token_id=ending_ids(model, tokenizer), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def sampled_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model whose generation config counts: PEFT copies a wrapper's own one into it, where it would stay."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def plain_sampling(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> Iterator[list[int]]:
    """Within the block `model.generate` draws from the model's own distribution; gives the ending ids.

    `generate` fills whatever its caller leaves out from the checkpoint's generation config: a penalty or a truncation
    there would make the sampler another policy than the one that is scored. The config is put back at the end.
    """
    holder = sampled_model(model)
    kept = holder.generation_config
    holder.generation_config = plain_config(model, tokenizer, max_tokens=max_tokens)
    try:
        yield list(holder.generation_config.eos_token_id)
    finally:
        holder.generation_config = kept
