"""Comparisons in one schema, from HH transcripts (multi-turn kept), plain pairs or chat messages.

Out: {"id", "prompt", "chosen", "rejected"} and "objective" where known. Prompt + completion is the exact text a model
reads: an HH prompt ends with "\\n\\nAssistant:", a completion is stripped and starts with one space (with none when the
prompt itself ends in white space); the end token is added by the training code, never here.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.data.load import Placed, Row, check_columns, iterate_rows
from align.errors import UserError

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"

DIVERGE = "the two transcripts diverge before the last assistant turn"
EMPTY = "empty reply in a transcript"


def load_comparisons(
    source: str | Path,
    *,
    objective: str | None = None,
    limit: int | None = None,
    as_transcript: bool = False,
    drops: Counter[str] | None = None,
) -> list[Row]:
    """Read `source` (any source of `load_rows`) and bring every row to the comparison schema.

    Args:
        objective: the label of every row; by default the row's own `objective` column, where it has one.
        as_transcript: also wrap plain prompts as "\\n\\nHuman: ...\\n\\nAssistant:".
        drops: filled with the rows left out, by reason. Two things are left out: pairs of full transcripts that diverge
            before the last assistant turn, and such pairs with an empty reply (the published HH files hold a few of
            both). Without `drops` the first of them is an error, so nothing is ever left out unseen.
    Raises:
        UserError: a missing column, an empty completion, a value that is not text; with file and line.
    """
    placed = iterate_rows(source, limit=limit)
    return comparisons_in(placed, source=source, objective=objective, as_transcript=as_transcript, drops=drops)


def comparisons_in(
    placed: Iterable[Placed],
    *,
    source: str | Path,
    objective: str | None = None,
    as_transcript: bool = False,
    drops: Counter[str] | None = None,
) -> list[Row]:
    """`load_comparisons` of rows that were read from `source` already, each with its place."""
    rows = []
    for place, row in placed:
        check_columns(row, ("chosen", "rejected"), place=place)
        pair, reason = comparison(row, place=place, as_transcript=as_transcript)
        if pair is None:
            if drops is None:
                raise UserError(f"{place}: {reason}; delete the row, or count such rows with drops=Counter()")
            drops[reason] += 1
            continue
        label = objective if objective is not None else row.get("objective")
        rows.append(pair if label is None else {**pair, "objective": str(label)})
    if not rows:
        raise UserError(f"{source}: no usable pair in it ({dict(drops or {})}); give prompt, chosen, rejected")
    return rows


def comparison(row: Mapping[str, Any], *, place: str, as_transcript: bool = False) -> tuple[Row | None, str]:
    """One row in the comparison schema and "", or (None, reason) for a row that cannot be one.

    Raises:
        UserError: see `load_comparisons`.
    """
    prompt, chosen, rejected = _texts(row, place=place)
    if prompt is None:
        parts = _split_transcripts(chosen, rejected, place=place)
        if parts is None:
            return None, DIVERGE
        prompt, chosen, rejected = parts
        if not chosen.strip() or not rejected.strip():
            return None, EMPTY
    else:
        prompt = _prompt(prompt, place=place, as_transcript=as_transcript)
        for name, text in (("chosen", chosen), ("rejected", rejected)):
            if not text.strip():
                raise UserError(f"{place}: empty completion in column '{name}'; delete the row or fill it in")
    pair = {"prompt": prompt, "chosen": as_completion(chosen, prompt), "rejected": as_completion(rejected, prompt)}
    content = "\0".join(pair.values()).encode("utf-8", "surrogatepass")
    return {"id": str(row.get("id") or hashlib.sha256(content).hexdigest()[:12]), **pair}, ""


def as_completion(text: str, prompt: str) -> str:
    """`text` stripped, with the one space that separates it from `prompt`."""
    return text.strip() if prompt[-1:].isspace() else " " + text.strip()


def as_human_turn(text: str) -> str:
    """A plain question as the prompt of a one-turn transcript."""
    return f"{HUMAN} {text.strip()}{ASSISTANT}"


def first_human_turn(prompt: str) -> str:
    """The opening question of a transcript; a plain prompt as it is."""
    if not prompt.startswith(HUMAN):
        return prompt
    return prompt[len(HUMAN) :].split(ASSISTANT, 1)[0].strip()


def _texts(row: Mapping[str, Any], *, place: str) -> tuple[str | None, str, str]:
    """(prompt or None when the transcripts hold it, chosen, rejected), chat messages written out as transcripts."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if _is_chat(chosen) and _is_chat(rejected):
        opening: Sequence[Mapping[str, Any]] = []
        if _is_chat(prompt):
            opening = prompt  # type: ignore[assignment]
        elif isinstance(prompt, str) and chosen[0].get("role") == "assistant":
            opening = [{"role": "user", "content": prompt}]
        full = [_transcript([*opening, *side], place=place) for side in (chosen, rejected)]
        return None, full[0], full[1]
    for name, value in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if not isinstance(value, str) and not (name == "prompt" and value is None):
            raise UserError(f"{place}: column '{name}' is {type(value).__name__}; make it text (or chat messages)")
    if prompt is not None and not prompt.strip():
        raise UserError(f"{place}: empty prompt; fill it in or leave the column out for full transcripts")
    return prompt, chosen, rejected


def _is_chat(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(m, Mapping) for m in value)


def _transcript(messages: Sequence[Mapping[str, Any]], *, place: str) -> str:
    """Chat messages as an HH transcript; a system message opens the human turn that follows it."""
    text, system = "", ""
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise UserError(f"{place}: chat message with role {role!r}; use system, user, assistant with text content")
        if role == "system":
            system = content.strip() + "\n\n"
        elif role == "user":
            text, system = f"{text}{HUMAN} {system}{content.strip()}", ""
        else:
            text = f"{text}{ASSISTANT} {content.strip()}"
    return text


def _split_transcripts(chosen: str, rejected: str, *, place: str) -> tuple[str, str, str] | None:
    """(prompt, chosen reply, rejected reply) of two full transcripts; None when they part before the last reply."""
    end = os.path.commonprefix([chosen, rejected]).rfind(ASSISTANT)
    if end < 0:
        if chosen.startswith(HUMAN) and rejected.startswith(HUMAN):
            return None
        raise UserError(f"{place}: no column 'prompt', and 'chosen' and 'rejected' are no transcripts; add the column")
    end += len(ASSISTANT)
    replies = chosen[end:], rejected[end:]
    if any(turn in reply for reply in replies for turn in (HUMAN, ASSISTANT)):
        return None
    return chosen[:end], *replies


def _prompt(prompt: str, *, place: str, as_transcript: bool) -> str:
    if prompt.lstrip().startswith(HUMAN.strip()):
        if not prompt.rstrip().endswith(ASSISTANT):
            raise UserError(f"{place}: a transcript prompt must end with '\\n\\nAssistant:'; add it at the end")
        return "\n\n" + prompt.strip()
    return as_human_turn(prompt) if as_transcript else prompt
