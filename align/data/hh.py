"""Comparisons in one schema, from HH transcripts (multi-turn kept), plain pairs or chat messages.

Out: {"id", "prompt", "chosen", "rejected"} and "objective" where known. Prompt + completion is the exact text a model
reads: an HH prompt ends with "\\n\\nAssistant:", a completion is stripped and starts with one space (with none when the
prompt itself ends in white space); the end token is added by the training code, never here.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from align.data.columns import (
    EMPTY,
    NO_REPLY,
    Said,
    as_completion,
    asked,
    joined,
    prompt_text,
    renamed,
    reply_text,
    said,
    tidy,
    turns_in,
)
from align.data.load import Placed, Row, check_columns, iterate_rows
from align.errors import UserError
from align.turns import MARKERS, Turn, is_transcript, transcript, turns_of

HUMAN, ASSISTANT = MARKERS["user"], MARKERS["assistant"]
Texts = tuple[str, str, str]  # prompt, chosen, rejected

DIVERGE = "the two transcripts diverge before the last assistant turn"


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
        drops: filled with the rows left out, by reason: pairs of conversations that diverge before the last assistant
            turn (the published HH files hold a few), that do not end with one, or that have an empty reply. Without
            `drops` the first of them is an error, so nothing is ever left out unseen.
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
    row = renamed(row)
    prompt = asked(row, place=place)
    chosen, rejected = said(row, "chosen", place=place), said(row, "rejected", place=place)
    if isinstance(chosen, tuple) and isinstance(rejected, tuple):
        found = _of_chats(prompt, chosen, rejected, place=place)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        found = _of_texts(prompt, chosen, rejected, place=place, as_transcript=as_transcript)
    else:
        odd = "chosen" if chosen is None or isinstance(chosen, tuple) else "rejected"
        raise UserError(f"{place}: column '{odd}' is not of the other's kind; make both text, or both chat messages")
    if isinstance(found, str):
        return None, found
    pair = dict(zip(("prompt", "chosen", "rejected"), found, strict=True))
    content = "\0".join(pair.values()).encode("utf-8", "surrogatepass")
    return {"id": str(row.get("id") or hashlib.sha256(content).hexdigest()[:12]), **pair}, ""


def as_human_turn(text: str) -> str:
    """A plain question as the prompt of a one-turn transcript."""
    return transcript([Turn("user", text.strip())])


def first_human_turn(prompt: str) -> str:
    """The opening question of a transcript; a plain prompt as it is."""
    if prompt.startswith(HUMAN):
        return prompt[len(HUMAN) :].split(ASSISTANT, 1)[0].strip()
    opening = next((turn for turn in turns_of(prompt) if turn.role == "user"), None)
    return prompt if opening is None or not is_transcript(prompt) else opening.content.strip()


def _of_chats(prompt: Said | None, chosen: tuple[Turn, ...], rejected: tuple[Turn, ...], *, place: str) -> Texts | str:
    """Prompt, chosen and rejected of chat messages, or why they cannot be compared."""
    opening = () if prompt is None else turns_in(prompt)
    first = joined(opening, chosen, name="chosen", place=place)
    second = joined(opening, rejected, name="rejected", place=place)
    if first[-1].role != "assistant" or second[-1].role != "assistant":
        return NO_REPLY
    before = first[:-1]
    if before != second[:-1]:
        return DIVERGE
    if not before:
        raise UserError(f"{place}: no column 'prompt', and 'chosen' has no turn before the reply; add the column")
    if not first[-1].content.strip() or not second[-1].content.strip():
        return EMPTY
    return prompt_text(before, place=place), reply_text(first[-1], before), reply_text(second[-1], before)


def _of_texts(prompt: Said | None, chosen: str, rejected: str, *, place: str, as_transcript: bool) -> Texts | str:
    """Prompt, chosen and rejected of texts, or why they cannot be compared."""
    if prompt is None or _hold_transcripts(prompt, chosen, rejected):
        parts = _split_transcripts(tidy(chosen), tidy(rejected), place=place)
        if parts is None:
            return DIVERGE
        prompt, chosen, rejected = parts
        if not chosen.strip() or not rejected.strip():
            return EMPTY
    elif isinstance(prompt, str) and _repeated(prompt, chosen, rejected):
        chosen, rejected = (_behind(prompt, text) for text in (chosen, rejected))
    prompt = prompt_text(prompt, place=place)
    if as_transcript and not is_transcript(prompt):
        prompt = as_human_turn(prompt)
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise UserError(f"{place}: empty completion in column '{name}'; delete the row or fill it in")
    return prompt, as_completion(chosen, prompt), as_completion(rejected, prompt)


def _hold_transcripts(prompt: Said, chosen: str, rejected: str) -> bool:
    """Whether both texts are transcripts in which the prompt stands once more (a reply may quote markers itself)."""
    sides = tidy(chosen), tidy(rejected)
    if not all(map(is_transcript, sides)):
        return False
    known = tidy(prompt_text(prompt, place="") if isinstance(prompt, tuple) else prompt).strip()
    known = known.removesuffix(ASSISTANT).strip()
    return all(known in side for side in sides)


def _repeated(prompt: str, *sides: str) -> bool:
    """Whether every text begins with the plain prompt, which is long enough not to be a reply's own first words."""
    start = prompt.strip()
    long = "\n" in prompt or len(start.split()) >= 3
    return long and all(side.lstrip().startswith(start) and side.strip() != start for side in sides)


def _behind(prompt: str, text: str) -> str:
    """What follows the prompt in a text that begins with it, to its last space or else without what stands around."""
    return text.removeprefix(prompt) if text.startswith(prompt) else text.lstrip().removeprefix(prompt.strip())


def _split_transcripts(chosen: str, rejected: str, *, place: str) -> Texts | None:
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
