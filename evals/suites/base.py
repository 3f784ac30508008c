"""What a suite is: base items from files or the hub, what is measured on them, their chance level, its natural shifts.

Items keep the row's own id. `columns["cluster"]` of an item names the base item that intervals run over: the paragraph
of a question, the template of a sentence, else the item itself; items with the same text share it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.data.load import Placed, Row, iterate_rows
from align.errors import UserError
from evals.items import Fields, Item, digest

Meaning = Mapping[Any, str]  # value of a label column (text, number or truth value) -> what it means
Score = Callable[[Item, str], Fields]  # what a completion of an item is worth, by the kind's own rule


@dataclass(frozen=True)
class Kind:
    """How the suites of a kind are measured. A new kind is one of these in the file of its suites.

    `metrics` maps each metric to whether higher is better. `measures` are made where the user names none (see
    `align suites --measure`); `score`, where there is one, is measured of every completion as well. A kind `of_pairs`
    compares responses, which reward models score and policies do not.
    """

    name: str
    metrics: Mapping[str, bool]
    measures: tuple[str, ...]
    score: Score | None = None
    score_version: int = 1  # goes into the key of every value: raise it when the rule changes
    of_pairs: bool = False


SAFETY = Kind("safety", {"asr": False, "over_refusal": False}, ("completion", "verdict", "comprehension"))
# log-likelihood of each choice; p_target is the target's share of probability
CHOICE = Kind("choice", {"accuracy": True, "p_target": True}, ("choices",))
CLASSIFICATION = Kind("classification", {"accuracy": True, "p_target": True}, ("choices",))
QA = Kind("qa", {"f1": True, "exact": True}, ("completion",))  # generation against reference answers
TRANSLATION = Kind("translation", {"chrf": True}, ("completion",))  # generation against one reference
REWARD_PAIRS = Kind("reward_pairs", {"accuracy": True}, ("pairs",), of_pairs=True)
TEXT = Kind("text", {"bits_per_byte": False}, ("bits",))  # likelihood of the text itself
SAFETY_LABELS = ("harmful", "benign")

Build = Callable[[Sequence[Placed]], list[Item]]


@dataclass(frozen=True)
class Suite:
    """One suite.

    `file` is its place below the data folder, empty for a suite that our own code generates; `columns` are what its
    rows must have. `partners` name the suites that are its natural shifts (this one is then in distribution). `aim` is
    "up", "down" or "none": the direction of `accuracy` where the target is a behaviour and not a right answer.
    `version`: its number is raised when the items change, so that results are no longer comparable; the letter with
    the interface.
    """

    name: str
    kind: Kind
    about: str
    build: Build
    file: str = ""
    columns: tuple[str, ...] = ()
    partners: tuple[str, ...] = ()
    aim: str = "up"
    version: str = "1-A"

    @property
    def metrics(self) -> dict[str, bool | None]:
        """Metric -> whether higher is better; None where neither direction is."""
        if self.aim == "up":
            return dict(self.kind.metrics)
        return dict.fromkeys(self.kind.metrics, None if self.aim == "none" else False)

    def load(self, data: str | Path | None = None, *, limit: int | None = None) -> list[Item]:
        """The items, in the order of the file; with `limit` a fixed sample of that many, see `choose`.

        `data` is the folder that holds `file`, or itself a file, data set directory or hub id with the same columns.
        UserError for a missing file, column or value, for a repeated id and for a limit below 1.
        """
        if limit is not None and limit < 1:
            raise UserError(f"--limit {limit} for suite {self.name}: ask for at least 1 item, or leave it out")
        source = self._source(data)
        placed = list(iterate_rows(source, columns=self.columns)) if source else []
        items = clustered(self.build(placed))
        if not items:
            raise UserError(f"{source or self.name}: no usable item for suite {self.name}; check the file")
        _check_ids(items, place=source or self.name)
        return choose(items, limit=limit)

    def _source(self, data: str | Path | None) -> str:
        if not self.file:
            return ""
        if data is None:
            raise UserError(f"suite {self.name} reads {self.file}; give its folder with --data")
        folder = Path(data).expanduser()
        if (folder / self.file).is_file():
            return str(folder / self.file)
        if folder.is_dir() and not _is_data_set(folder):
            raise UserError(f"{folder / self.file}: no such file, which suite {self.name} reads; check --data")
        return str(data)  # a file, a data set directory or a hub id with the same columns


def _is_data_set(folder: Path) -> bool:
    """Whether the folder itself is a data set (saved, or data files at its top level)."""
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    return saved or any(folder.glob("*.parquet")) or any(folder.glob("*.jsonl*"))


def _check_ids(items: Sequence[Item], *, place: str) -> None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UserError(f"{place}: the id {item.id!r} occurs twice; make ids unique")
        seen.add(item.id)


# --- clusters and limits ---------------------------------------------------------------------------------------------


def same_text(text: str) -> str:
    """A key that is equal for texts that differ in case, spacing and punctuation only (never empty for a text)."""
    return re.sub(r"[\W_]+", "", text.lower()) or text


def clustered(items: Sequence[Item]) -> list[Item]:
    """Items with their cluster filled in: what the builder gave, else the first item with the same text and history."""
    first: dict[str, str] = {}
    result = []
    for item in items:
        if "cluster" not in item.columns:
            turns = [(turn.role, turn.content) for turn in item.before]
            name = first.setdefault(digest(same_text(item.request), turns), item.id)
            item = replace(item, columns={**item.columns, "cluster": name})
        result.append(item)
    return result


def choose(items: Sequence[Item], *, limit: int | None) -> list[Item]:
    """A fixed sample of `limit` items in file order: as many clusters as there are, then a second item of each, ...

    Which ones depends on their names alone, so that a larger limit adds items and never swaps them, files sorted by
    label or domain are sampled evenly, and suites with the same base items keep the same ones. Twins come together.
    """
    if limit is None or limit >= len(items):
        return list(items)
    ids = {item.id for item in items}
    units: dict[tuple[str, ...], list[int]] = {}
    for i, item in enumerate(items):
        twins = (item.id, item.twin) if item.twin in ids else (item.id,)
        units.setdefault(tuple(sorted(map(str, twins))), []).append(i)
    ranks: Counter[str] = Counter()
    order = []
    for unit in sorted(units, key=lambda unit: digest("unit", unit)):
        cluster = items[units[unit][0]].cluster
        order.append((ranks[cluster], digest("cluster", cluster), units[unit]))
        ranks[cluster] += 1
    chosen = [i for _, _, places in sorted(order) for i in places][:limit]
    return [items[i] for i in sorted(chosen)]


# --- what the builders share -----------------------------------------------------------------------------------------


def each(make: Callable[[Row, str], Item | None]) -> Build:
    """A builder that makes one item of a row and its place; None leaves a row out (for what is not in the suite)."""

    def build(placed: Sequence[Placed]) -> list[Item]:
        made = (make(row, place) for place, row in placed)
        return [item for item in made if item is not None]

    return build


def row_id(row: Row) -> str:
    """The row's own id, else a digest of its content."""
    return str(row["id"]) if row.get("id") not in (None, "") else digest({k: str(v) for k, v in row.items()})


def text_of(row: Row, column: str, *, place: str) -> str:
    """A column that must hold text; UserError with the place otherwise."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: column '{column}' is empty or no text; fill it in or delete the row")
    return value


def known(value: object, meaning: Meaning, *, column: str, place: str) -> str:
    """What a label means; UserError that lists the known ones."""
    if isinstance(value, (str, int, bool)) and value in meaning:
        return meaning[value]
    raise UserError(f"{place}: {column} {value!r} is not one of {', '.join(map(str, meaning))}; fix the row")


def chance(items: Iterable[Item]) -> float | None:
    """Accuracy of guessing evenly among the choices: the mean of 1 / choices; None where nothing can be guessed.

    For comparisons of responses it is one half; a generated answer or a likelihood has no chance level.
    """
    shares = [1 / len(i.choices) if i.choices else 0.5 if "chosen" in i.columns else None for i in items]
    numbers = [share for share in shares if share is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(shares) else None


def majority(items: Sequence[Item]) -> float | None:
    """Accuracy of always giving the most frequent class; None where the items have no classes."""
    targets = [item.choices[item.target] for item in items if item.choices and isinstance(item.target, int)]
    if not targets or len({item.choices for item in items}) > 1:
        return None
    return max(targets.count(target) for target in set(targets)) / len(targets)
