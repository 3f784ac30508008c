"""The prompts that a policy is sampled from: those that its prompt format can say, and that leave room to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from align import checks
from align.data.comparisons import Row
from align.errors import UserError
from align.models.chat import FormatError
from align.models.formats import Formatter, formatter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sayable(
    prompts: Sequence[Row], form: Formatter, *, model: PreTrainedModel | None = None, max_tokens: int = 0
) -> tuple[list[Row], dict[str, int]]:
    """The rows whose prompt the format can say, and how many were left out by reason.

    With a `model`, prompts that leave no room for `max_tokens` more are left out, too ("length"). UserError where no
    row is left.
    """
    most = None if model is None else checks.context_of(model)
    kept: list[Row] = []
    left_out: dict[str, int] = {}
    seen: dict[str, tuple[str | None, int]] = {}
    for row in prompts:
        prompt = row["prompt"]
        if prompt not in seen:
            seen[prompt] = _read(prompt, form, most=None if most is None else most - max_tokens)
        reason = seen[prompt][0]
        if reason is None:
            kept.append(row)
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    if prompts and not kept:
        if model is not None and "length" in left_out:
            checks.prompts_fit(max(length for _, length in seen.values()), model, max_completion_length=max_tokens)
        raise UserError(f"the prompt format can say none of the {len(prompts)} prompts ({', '.join(left_out)})")
    return kept, left_out


def _read(prompt: str, form: Formatter, *, most: int | None) -> tuple[str | None, int]:
    """(Why a prompt is left out, or None; its length in tokens)."""
    try:
        length = len(form.prompt_ids(prompt))
    except FormatError as error:
        return error.reason, 0
    return "length" if most is not None and length > most else None, length


def counted(left_out: Mapping[str, int]) -> dict[str, object]:
    """The rows that were left out as metrics: `prompts_dropped_by_` and the reason."""
    return {f"prompts_dropped_by_{reason}": count for reason, count in left_out.items()}


def check_lengths(
    prompts: Sequence[Row], *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> None:
    """UserError for a prompt without tokens, or when the longest one and its response exceed the model's positions."""
    ids = formatter(tokenizer).prompts_ids([row["prompt"] for row in prompts])
    for row, tokens in zip(prompts, ids, strict=True):
        if not tokens:
            raise UserError(f"prompt {row.get('id', '?')} has no token to continue from; leave it out")
    checks.prompts_fit(max(map(len, ids)), model, max_completion_length=max_tokens)


def check_prompts(
    prompts: Sequence[Row], *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> None:
    """As `check_lengths`; UserError for prompts that TRL would train at shifted positions, too."""
    refuse_shifted_positions(model, prompts=prompts, tokenizer=tokenizer)
    check_lengths(prompts, model=model, tokenizer=tokenizer, max_tokens=max_tokens)


def refuse_shifted_positions(
    model: PreTrainedModel, *, prompts: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> None:
    """UserError for prompts of several lengths with a model of learned positions.

    TRL pads prompts on the left and numbers positions from the padding on in its loss, while `generate` numbers them
    from the first token: with learned positions (GPT-2) the policy trained would not be the one that was sampled.
    """
    if model.config.model_type not in ("gpt2", "gpt_neo", "opt", "gpt_bigcode", "biogpt", "xglm"):
        return
    lengths = set(map(len, formatter(tokenizer).prompts_ids([row["prompt"] for row in prompts])))
    if len(lengths) > 1:
        raise UserError(
            f"a {model.config.model_type} model has learned positions, and prompts of several lengths ({min(lengths)} "
            f"to {max(lengths)} tokens) would be trained at other positions than sampled; use a rotary model like llama"
        )
