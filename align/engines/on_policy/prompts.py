"""The prompts that a policy is sampled from: those that its prompt format can say, and that fit its positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from align import checks
from align.data.comparisons import Row
from align.errors import UserError
from align.models.formats import Formatter, formatter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sayable(prompts: Sequence[Row], form: Formatter) -> tuple[list[Row], dict[str, int]]:
    """The rows whose prompt the format can say, and how many were left out by reason."""
    kept: list[Row] = []
    left_out: dict[str, int] = {}
    reasons: dict[str, str | None] = {}
    for row in prompts:
        prompt = row["prompt"]
        if prompt not in reasons:
            reasons[prompt] = form.refusal(prompt)
        reason = reasons[prompt]
        if reason is None:
            kept.append(row)
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    if prompts and not kept:
        raise UserError(f"the prompt format can say none of the {len(prompts)} prompts ({', '.join(left_out)})")
    return kept, left_out


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
