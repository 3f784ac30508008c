"""Log-likelihood of whole texts in windows of a model's context, each token predicted once and with full context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.errors import UserError
from align.models.chat import ids_of
from evals.items import Missing

NO_TURN = Missing("no_user_turn", "tags stand in the user's turn, and a bare text has none", lasting=True)


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


def rolling_logprob(text: str, *, backend: Any) -> float | Missing:
    """Sum of log-probabilities in nats of a text without any template, after the start (or else the end) token.

    The text's own ids are the tokenizer's, as in `lm_eval`: a start token that it writes is predicted, too. Missing for
    a policy whose tags have no user's turn to stand in; UserError for a backend that has no model in memory: an API's
    template would stand around the text.
    """
    if not hasattr(backend, "logprobs") or not hasattr(backend, "tokenizer"):
        raise UserError(f"{backend.name} scores answers to prompts only; tasks on whole texts need a model in memory")
    if backend.lead:
        return NO_TURN
    tokenizer, start = backend.tokenizer, start_of(backend)
    ids = tokenizer(text, add_special_tokens=not text.startswith(tokenizer.decode([start])))["input_ids"]
    return float(sum(_sums(windows(ids, start=start, context=backend.context or 2048), backend)))


def bare_pair(text: str, *, backend: Any) -> tuple[list[int], int] | Missing:
    """(Ids, 1) of a continuation without a context: behind the start (or else end) token.

    A text that begins with that token itself is what follows it, as in `lm_eval`.
    """
    if backend.lead:
        return NO_TURN
    start, ids = start_of(backend), ids_of(backend.tokenizer, text)
    ids = ids[1:] if ids[:1] == [start] else ids
    if not ids:
        return Missing("empty_continuation", "no token", lasting=True)
    if backend.context is not None and len(ids) >= backend.context:
        return Missing("context", f"{len(ids) + 1} tokens do not fit in {backend.context}", lasting=True)
    return [start, *ids], 1


def start_of(backend: Any) -> int:
    """The token that stands before a text without any: the start token, else the end token."""
    tokenizer = backend.tokenizer
    return int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id)


def _sums(rows: Sequence[tuple[list[int], list[int]]], backend: Any) -> list[float]:
    """Of each row (input, the ids that its last positions predict) the log-probability of what is predicted."""

    def work(chosen: list[int]) -> list[float]:
        logp_BTV = backend.logprobs([rows[i][0] for i in chosen])[0]
        sums = []
        for b, (inputs, targets) in enumerate(rows[i] for i in chosen):
            places = range(len(inputs) - len(targets), len(inputs))
            sums.append(sum(float(logp_BTV[b, t, target]) for t, target in zip(places, targets, strict=True)))
        return sums

    return list(backend.batcher.run([len(inputs) for inputs, _ in rows], work=work))
