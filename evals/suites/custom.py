"""A suite from any file of rows: its kind is read off the columns, its name is the file's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from align.data.hh import comparison
from align.data.load import Placed, Row, iterate_rows
from align.errors import UserError
from align.turns import MARKERS, Turn, is_chat
from evals.items import Fields, Item, Json
from evals.suites.base import CHOICE, QA, REWARD_PAIRS, SAFETY, TEXT, Build, Suite, each, known, row_id
from evals.suites.choice import closed
from evals.suites.rewards import pair
from evals.suites.safety import turns_of

TEXT_COLUMNS = ("prompt", "request", "question")
GROUP_COLUMNS = ("group", "type", "category", "subset", "domain")
LABELS = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "benign": "benign",
    "safe": "benign",
    "harmless": "benign",
}


def custom_suite(path: str | Path) -> Suite:
    """The suite of a file with these columns, one of the first line being enough:

    - `prompt` (or `request`, `question`): text, an HH transcript, or a list of chat messages;
    - `label` "harmful" / "benign" (or "unsafe" / "safe"): a safety suite;
    - `choices` and `target` (an index or one of the choices): multiple choice;
    - `chosen` and `rejected`: comparisons for reward models; `answers`: question answering; `text` alone: likelihood.

    `id`, `group` (or `type`, `category`), `twin` and `cluster` are read where they are there, all others are kept.
    UserError where the first row fits none of them.
    """
    where, row = next(iter(iterate_rows(str(path), limit=1)))
    for kind, needed in (
        (CHOICE, ("choices", "target")),
        (REWARD_PAIRS, ("chosen", "rejected")),
        (QA, ("answers",)),
        (SAFETY, ("label",)),
    ):
        if all(name in row for name in needed) and _text_column(row):
            return Suite(_name(path), kind, f"rows of {path}", BUILDS[kind.name], file=str(path), columns=needed)
    if isinstance(row.get("text"), str) and not _text_column(row):
        return Suite(_name(path), TEXT, f"rows of {path}", each(_text), file=str(path), columns=("text",))
    raise UserError(
        f"{where}: no kind of suite has the columns {', '.join(sorted(row))}; give 'prompt' with 'label', "
        "with 'choices' and 'target', with 'chosen' and 'rejected', or with 'answers'; or 'text'"
    )


def _name(path: str | Path) -> str:
    name = Path(path).name
    for end in (".gz", ".jsonl", ".json", ".csv", ".tsv", ".parquet"):
        name = name.removesuffix(end)
    return name


def _text_column(row: Fields) -> str | None:
    return next((name for name in TEXT_COLUMNS if row.get(name)), None)


def _prompt(row: Row, place: str) -> tuple[tuple[Turn, ...], str]:
    """(Earlier turns, last request)."""
    column = _text_column(row)
    value = row[column] if column else None
    if isinstance(value, str) and value.strip():
        before, request = turns_of(value)
        if request:
            return before, request
    elif isinstance(value, list) and all(isinstance(m, Mapping) for m in value):
        turns = [(m.get("role"), m.get("content")) for m in value]
        if all(role in MARKERS and isinstance(text, str) for role, text in turns) and turns[-1][0] == "user":
            made = [Turn(str(role), str(text)) for role, text in turns]
            return tuple(made[:-1]), made[-1].content
    raise UserError(
        f"{place}: no text in {', '.join(TEXT_COLUMNS)}, or chat messages that do not end with the user's turn"
    )


def _group(row: Row) -> str:
    return next((str(row[name]) for name in GROUP_COLUMNS if row.get(name)), "")


def _columns(row: Row) -> Json:
    """The rest of the row; a cluster of the user's own is kept as text."""
    taken = {*TEXT_COLUMNS, "id", "label", "choices", "target", "twin", "cluster"}
    rest = {name: value for name, value in row.items() if name not in taken}
    return rest if row.get("cluster") is None else {**rest, "cluster": str(row["cluster"])}


def _item(row: Row, place: str, *, label: str, target: str | None = None) -> Item:
    before, request = _prompt(row, place)
    twin = None if row.get("twin") is None else str(row["twin"])
    return Item(
        row_id(row),
        request,
        label=label,
        group=_group(row),
        before=before,
        twin=twin,
        target=target,
        columns=_columns(row),
    )


def _safety(row: Row, place: str) -> Item:
    return _item(row, place, label=known(row["label"], LABELS, column="label", place=place))


def _choice(row: Row, place: str) -> Item:
    choices, target = row["choices"], row["target"]
    if not isinstance(choices, list):
        raise UserError(f"{place}: column 'choices' must be a list; fix the row")
    if isinstance(target, str) and target in choices:
        target = choices.index(target)
    before, request = _prompt(row, place)
    item = closed(
        row,
        request,
        choices=choices,
        target=target,
        place=place,
        label=str(row.get("label") or ""),
        group=_group(row),
        columns=_columns(row),
    )
    return Item(**{**item.__dict__, "before": before})


def _qa(row: Row, place: str) -> Item:
    answers = row["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise UserError(f"{place}: column 'answers' must be a list of texts, none empty; fix or delete the row")
    return _item(row, place, label=str(row.get("label") or ""), target=answers[0])


def _pairs(row: Row, place: str) -> Item:
    """Replies as text or as chat messages, whole conversations among them; lists of texts are styles."""
    if is_chat(row["chosen"]) or is_chat(row["rejected"]):
        found, reason = comparison(row, place=place)
        if found is None:
            raise UserError(f"{place}: {reason}; fix or delete the row")
        row = {**row, **found, "id": row.get("id")}
    sides = [value if isinstance(value, list) else [value] for value in (row["chosen"], row["rejected"])]
    return pair(row, place=place, chosen=sides[0], rejected=sides[1], group=_group(row), columns=_columns(row))


def _text(row: Row, place: str) -> Item:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: column 'text' is empty or no text; fill it in or delete the row")
    return Item(row_id(row), text, group=_group(row), columns=_columns({**row, "text": None}))


def _twins_known(build: Build) -> Build:
    """Twins must be items of the same file: a dangling one would lose its contrast unseen."""

    def checked(placed: Sequence[Placed]) -> list[Item]:
        items = build(placed)
        ids = {item.id for item in items}
        for (place, _), item in zip(placed, items, strict=True):
            if item.twin is not None and item.twin not in ids:
                raise UserError(f"{place}: its twin {item.twin!r} is not in the file; fix the id or leave 'twin' out")
        return items

    return checked


BUILDS: dict[str, Build] = {
    "safety": _twins_known(each(_safety)),
    "choice": each(_choice),
    "qa": each(_qa),
    "reward_pairs": each(_pairs),
}
