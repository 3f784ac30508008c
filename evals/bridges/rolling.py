"""Log-likelihood of whole texts in windows of a model's context, each token predicted once and with full context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.errors import UserError


def windows(ids: Sequence[int], *, start: int, context: int) -> list[tuple[list[int], list[int]]]:
    """(Input token ids, the ids that its last positions predict) of each window, as `lm_eval` cuts them.

    `start` stands before the first token. Inputs are at most `context` long; the first window predicts as much as it
    can, later ones are full too, and only the tokens that no earlier window predicted are predicted in them.
    """
    if context < 1:
        raise ValueError(f"a context of {context} tokens has no room")
    whole, result = [start, *ids], []
    for done in range(0, len(ids), context):
        end = min(done + context, len(ids))  # in `whole`, the place of the last predicted token
        result.append((whole[max(0, end - context) : end], whole[done + 1 : end + 1]))
    return result


def rolling_logprob(text: str, *, backend: Any) -> float:
    """Sum of log-probabilities in nats of a text without any template, after the start (or else the end) token.

    UserError for a backend that has no model in memory: an API's template would stand around the text.
    """
    if not hasattr(backend, "logprobs") or not hasattr(backend, "tokenizer"):
        raise UserError(f"{backend.name} scores answers to prompts only; tasks on whole texts need a model in memory")
    tokenizer = backend.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = windows(ids, start=start, context=backend.context or 2048)
    if not rows:
        return 0.0

    def work(chosen: list[int]) -> list[float]:
        logp_BTV = backend.logprobs([rows[i][0] for i in chosen])[0]
        sums = []
        for b, (inputs, targets) in enumerate(rows[i] for i in chosen):
            places = range(len(inputs) - len(targets), len(inputs))
            sums.append(sum(float(logp_BTV[b, t, target]) for t, target in zip(places, targets, strict=True)))
        return sums

    return float(sum(backend.batcher.run([len(inputs) for inputs, _ in rows], work=work)))
