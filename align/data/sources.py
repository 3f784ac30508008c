"""Rows of a command's sources: what to train on, demonstrations, texts and prompts, each with its place in errors."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from align.data.columns import as_completion, asked, earlier, joined, prompt_text, renamed, replies, said, turns_in
from align.data.hh import comparison, comparisons_in
from align.data.load import Placed, Row, iterate_rows
from align.errors import UserError
from align.turns import Turn, is_chat, turns_from


def load_training_rows(
    sources: Mapping[str, str], *, limit: int | None, drops: Counter[str]
) -> tuple[list[Row] | None, list[dict[str, str]]]:
    """(rows to compare, or None; prompts): what the sources hold, in one schema; prompts are those of the rows.

    Several sources are named by their objective, and each row then carries that name. Rows to compare are comparisons
    (`chosen`, `rejected`), two responses that an annotator or the objectives will judge (`a`, `b`), or responses with
    labels of their own (`completion`, `label`).
    """
    rows: list[Row] = []
    kinds = set()
    for name, source in sources.items():
        objective = None if name == source else name
        placed = list(iterate_rows(source, limit=limit))
        kinds.add(kind := _kind(placed[0][1]))
        loaded = _LOADERS[kind](placed, source, objective, drops)
        rows += [{**row, "id": f"{name}:{row['id']}"} if len(sources) > 1 and "id" in row else row for row in loaded]
    if len(kinds) > 1:
        raise UserError(f"--data mixes rows of different kinds ({', '.join(sorted(kinds))}); give one kind")
    return (None if kinds == {"prompts"} else rows), unique_prompts(rows)


def _kind(row: Row) -> str:
    """What a source holds, by its first row."""
    if "a" in row:
        return "judged later"
    if "chosen" in row:
        return "compared"
    labelled = row.get("label") is not None and truth(row["label"]) is not None
    return "labelled" if labelled and "completion" in renamed(row) else "prompts"


def _compared(placed: Sequence[Placed], source: str, objective: str | None, drops: Counter[str]) -> list[Row]:
    return comparisons_in(placed, source=source, objective=objective, drops=drops)


def _judged_later(placed: Sequence[Placed], source: str, objective: str | None, drops: Counter[str]) -> list[Row]:
    """Texts as they are; responses that are chat messages as those of comparisons."""
    rows = []
    for place, row in placed:
        if any(is_chat(row.get(name)) for name in ("prompt", "a", "b")):
            pair, reason = comparison({**row, "chosen": row.get("a"), "rejected": row.get("b")}, place=place)
            if pair is None:
                drops[reason] += 1
                continue
            row = {**row, "prompt": pair["prompt"], "a": pair["chosen"], "b": pair["rejected"]}
        rows.append(filled(row, ("prompt", "a", "b"), place=place))
    if not rows:
        raise UserError(f"{source}: no usable row in it ({dict(drops)}); give prompt, a and b")
    return rows


def _labelled(placed: Sequence[Placed], source: str, objective: str | None, drops: Counter[str]) -> list[Row]:
    """Rows {"id", "prompt", "completion", "label"}: one response, desirable or not."""
    rows = []
    for place, row in placed:
        label = truth(row.get("label"))
        if label is None:
            raise UserError(f"{place}: label {row.get('label')!r} is neither true nor false; fix or delete that row")
        found, lost = demonstrations_in(row, place=place, last=True)
        drops.update(lost)
        named = {} if objective is None else {"objective": objective}
        for prompt, completion in found:
            content = f"{prompt}\0{completion}\0{label}".encode("utf-8", "surrogatepass")
            identity = str(row.get("id") or hashlib.sha256(content).hexdigest()[:12])
            kept = {"id": identity, "prompt": prompt, "completion": completion, "label": label}
            rows.append({**{"objective": row["objective"]}, **kept, **named} if "objective" in row else kept | named)
    if not rows:
        raise UserError(f"{source}: no usable row in it ({dict(drops)}); give prompt, completion and label")
    return rows


def _prompts(placed: Sequence[Placed], source: str, objective: str | None, drops: Counter[str]) -> list[Row]:
    return [{**row, "prompt": prompt_in(row, place=place)} for place, row in placed]


_LOADERS = {"compared": _compared, "judged later": _judged_later, "labelled": _labelled, "prompts": _prompts}


def truth(value: object) -> bool | None:
    """A label as true or false (a table of text has only words for it); None for anything else."""
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    return words.get(str(value).strip().lower())


def prompt_in(row: Row, *, place: str) -> str:
    """The prompt of any row: its own, or what comes before the last reply of its conversation.

    Raises:
        UserError: a row without one.
    """
    named = renamed(row)
    prompt = asked(named, place=place)
    if prompt is None and is_chat(named.get("messages")):
        prompt = _opening(turns_from(named["messages"], place=place))
    if prompt is None and "chosen" in named:
        pair, reason = comparison(row, place=place)
        if pair is None:
            raise UserError(f"{place}: no prompt in that row ({reason}); add a column 'prompt', or delete the row")
        return str(pair["prompt"])
    if not prompt:
        raise UserError(f"{place}: column 'prompt' is missing, empty or not text; fix or delete that row")
    return prompt_text(prompt, place=place)


def _opening(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """A conversation up to the last turn by the user."""
    last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1)
    return tuple(turns[: last + 1])


def filled(row: Row, columns: Sequence[str], *, place: str) -> Row:
    """The row; UserError naming the place and the column that is missing, empty or not text."""
    for column in columns:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise UserError(f"{place}: column '{column}' is missing, empty or not text; fix or delete that row")
    return row


def text_rows(source: str, *, limit: int | None) -> list[Row]:
    """Rows with a `text` that is text (it may be empty: cleaning counts those); UserError naming file and line."""
    rows = []
    for place, row in iterate_rows(source, columns=("text",), limit=limit):
        if not isinstance(row["text"], str):
            raise UserError(f"{place}: column 'text' is {type(row['text']).__name__}; make it text or delete that row")
        rows.append(row)
    return rows


def prompt_rows(source: str, *, limit: int | None) -> list[Row]:
    """Rows with their prompt as text, whatever columns it comes from; UserError on a row without one."""
    return [{**row, "prompt": prompt_in(row, place=place)} for place, row in iterate_rows(source, limit=limit)]


def text_prompts(source: str, *, limit: int | None) -> list[str]:
    """The prompts of rows, each once, in order; UserError on a row without one."""
    return list(dict.fromkeys(row["prompt"] for row in prompt_rows(source, limit=None)))[:limit]


def demonstrations(source: str, *, limit: int | None, drops: Counter[str]) -> list[Row]:
    """Rows {"prompt", "completion"} to imitate; of comparisons the chosen side is the demonstration.

    Of a conversation (`messages`, or several turns in `completion`) every reply by the assistant is a demonstration of
    its own, behind the turns before it: what a chat template writes of earlier turns is then what it writes when the
    model is asked. `drops` counts replies that are empty or have nothing before them, and conversations without one.

    Raises:
        UserError: a row without prompt or completion, and a source in which no demonstration is left.
    """
    placed = list(iterate_rows(source, limit=limit))
    first = renamed(placed[0][1])
    if "chosen" in first and first.get("completion") is None and first.get("messages") is None:
        pairs = comparisons_in(placed, source=source, drops=drops)
        return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    rows: list[Row] = []
    for place, row in placed:
        found, lost = demonstrations_in(row, place=place)
        drops.update(lost)
        rows += [{"prompt": prompt, "completion": completion} for prompt, completion in found]
    if not rows:
        raise UserError(f"{source}: no demonstration in it ({dict(drops)}); give prompt and completion, or messages")
    return rows


def demonstrations_in(row: Row, *, place: str, last: bool = False) -> tuple[list[tuple[str, str]], list[str]]:
    """((prompt, completion) of each reply in a row, why others are left out); `last`: of its last reply alone.

    UserError for a row that has neither a completion nor a conversation.
    """
    named = renamed(row)
    completion = said(named, "completion", place=place)
    if isinstance(completion, tuple) or (completion is None and is_chat(named.get("messages"))):
        return _in_conversation(named, completion, place=place, last=last)
    prompt = asked(named, place=place)
    if prompt is None or completion is None or not completion.strip():
        column = "prompt" if prompt is None else "completion"
        raise UserError(f"{place}: column '{column}' is missing, empty or not text; fix or delete that row")
    text = prompt_text(prompt, place=place)
    return [(text, as_completion(completion, text))], []


def _in_conversation(
    named: Row, completion: tuple[Turn, ...] | None, *, place: str, last: bool
) -> tuple[list[tuple[str, str]], list[str]]:
    if completion is None:
        turns, first = (*earlier(named, place=place), *turns_from(named["messages"], place=place)), 0
    else:
        prompt = asked(named, place=place)
        opening = () if prompt is None else turns_in(prompt)
        turns, first = joined(opening, completion, name="completion", place=place), len(opening)
    if last:
        first = len(turns) - 1
    return replies(turns, first=first)


def columns_by_prompt(
    sources: Mapping[str, str], columns: Sequence[str], *, optional: Collection[str] = (), limit: int | None = None
) -> dict[str, dict[str, object]]:
    """Column -> prompt -> value, of the rows that `load_training_rows` makes prompts of; rows without a value are left
    out, and `optional` columns that no row has.

    Raises:
        UserError: a column that no row has, and a prompt with two values.
    """
    found: dict[str, dict[str, object]] = {column: {} for column in columns}
    for source in sources.values() if columns else ():
        placed = list(iterate_rows(source, limit=limit))
        load = _LOADERS[_kind(placed[0][1])]
        for place, row in placed:
            try:
                (loaded,) = load([(place, row)], source, None, Counter())[:1]
            except UserError:  # left out of the training, and counted there
                continue
            for column in columns:
                value = row.get(column)
                if value is None:
                    continue
                if found[column].setdefault(loaded["prompt"], value) != value:
                    raise UserError(
                        f"{place}: column {column!r} differs from that of an earlier row with the same prompt, and "
                        "objectives find it by the prompt; keep one of the two rows"
                    )
    for column, values in found.items():
        if not values and column not in optional:
            raise UserError(
                f"{', '.join(sources.values())}: no row has a column {column!r}, which an objective reads; add it, or "
                "leave that objective out"
            )
    return {column: values for column, values in found.items() if values}


def unique_prompts(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One {"id", "prompt"} row per distinct prompt, in order of first appearance."""
    first: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise UserError(f"prompt row {number}: column 'prompt' is missing or empty; fix that row")
        first.setdefault(row["prompt"], str(row.get("id", number - 1)))
    return [{"id": identity, "prompt": prompt} for prompt, identity in first.items()]
