"""Rows of real preference data: comparisons and text found in one source, cleaned with every drop counted.

What the source may be
- a folder with `hh_rlhf/helpful_single_turn.jsonl.gz` and `hh_rlhf/harmless_single_turn.jsonl.gz` (and the text files
  of `text` in the config, relative to the folder);
- a folder with `helpful-base` and `harmless-base` below it, each in a form that `align.data.load_rows` reads, or the
  hub id of such a data set (`Anthropic/hh-rlhf`);
- any other file, folder or hub id whose rows have `chosen`, `rejected`, a `prompt` (or full transcripts), and an
  `objective` column that names one of the objectives.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.data import clean_comparisons, clean_texts, load_comparisons, load_rows
from align.data.columns import as_completion
from align.data.sources import demonstrations
from align.errors import UserError

PARTS = ("train", "judge", "test")
Rows = list[dict[str, Any]]


def comparison_sources(data: str, *, names: Sequence[str]) -> dict[str, str]:
    """Objective -> source of its rows; {"": data} where the rows themselves name their objective."""
    folder = Path(data).expanduser()
    if (folder / "hh_rlhf").is_dir():
        return {name: str(folder / "hh_rlhf" / f"{name}_single_turn.jsonl.gz") for name in names}
    if all((folder / f"{name}-base").is_dir() for name in names):
        return {name: str(folder / f"{name}-base") for name in names}
    if not folder.exists() and data.rstrip("/").endswith("hh-rlhf") and not data.startswith((".", "/", "~")):
        return {name: f"{data.rstrip('/')}/{name}-base" for name in names}
    return {"": data}


def text_sources(data: str, *, files: Sequence[str]) -> list[str]:
    """The configured text files where `--data` is a folder that has the first of them, else none."""
    folder = Path(data).expanduser()
    if not files or not folder.is_dir() or not (folder / files[0]).is_file():
        return []
    return [str(folder / name) for name in files]


def load_pairs(
    data: str, *, names: Sequence[str], limit: int | None, cleaning: Any
) -> tuple[Rows, dict[str, dict[str, int]]]:
    """(clean comparisons of all objectives with unique ids, drops by objective and reason).

    UserError when an objective has no row, or a row names another objective.
    """
    by_name: dict[str, Rows] = {name: [] for name in names}
    drops: dict[str, Counter[str]] = {name: Counter() for name in names}
    for name, source in comparison_sources(data, names=names).items():
        lost: Counter[str] = Counter()
        for row in load_comparisons(source, objective=name or None, limit=limit, drops=lost, as_transcript=True):
            if row.get("objective") not in by_name:
                raise UserError(
                    f"{source}: a row has objective {row.get('objective')!r}; add a column 'objective' with one of "
                    f"{', '.join(names)}, or give a folder with {' and '.join(f'{n}-base' for n in names)}"
                )
            by_name[row["objective"]].append(row)
        drops[name or names[0]].update(lost)
    kept: Rows = []
    for name, rows in by_name.items():
        if not rows:
            raise UserError(f"{data}: no comparison of objective {name!r} in it; add some, or name it in 'objective'")
        clean, dropped = clean_comparisons(rows, cleaning)
        drops[name].update(dropped)
        kept += [{**row, "id": f"{name}:{row['id']}"} for row in clean]
    return kept, {name: dict(counts) for name, counts in drops.items()}


def load_texts(
    data: str, *, files: Sequence[str], piece: int, limit: int | None, cleaning: Any
) -> tuple[Rows, dict[str, int]]:
    """(clean passages of about `piece` characters from the text files, drops by reason)."""
    rows: Rows = []
    for source in text_sources(data, files=files):
        for row in load_rows(source, columns=("text",), limit=limit):
            rows += [{"text": text} for text in passages(row["text"], size=piece)]
    if not rows:
        return [], {}
    clean, drops = clean_texts(rows, cleaning)
    return clean, dict(drops)


def load_demonstrations(
    data: str, *, files: Mapping[str, str], limit: int | None, max_characters: int | None
) -> tuple[Rows, dict[str, int]]:
    """(replies to imitate with id and objective, objectives taking turns, drops by reason).

    `files`: objective -> file relative to the folder `data`. What is above `max_characters`, prompt and reply, is left
    out and counted, and so is what one objective has more of than another.
    """
    drops: Counter[str] = Counter()
    by_name: list[Rows] = []
    for name, file in files.items():
        rows = demonstrations(str(Path(data).expanduser() / file), limit=limit, drops=drops)
        short = [r for r in rows if max_characters is None or len(r["prompt"] + r["completion"]) <= max_characters]
        drops["longer than max_characters"] += len(rows) - len(short)
        by_name.append([{"id": f"{name} demonstration:{i}", "objective": name, **r} for i, r in enumerate(short)])
    rounds = list(zip(*by_name, strict=False))
    drops["more than another objective has"] = sum(map(len, by_name)) - len(by_name) * len(rounds)
    return [row for one in rounds for row in one], dict(+drops)


def contrasts_of(rows: Sequence[Mapping[str, Any]], *, own: Mapping[str, str]) -> Rows:
    """Comparisons of demonstrations in turn: `rows` as `load_demonstrations` gives them, each `chosen`.

    `rejected` is the model's own reply where `own` (by id) has one, else what demonstrates the next objective, in reply
    to another prompt. Pairs of equal texts are left out.
    """
    made: Rows = []
    count = len({row["objective"] for row in rows})
    for i, row in enumerate(rows):
        other = own.get(row["id"], rows[i - i % count + (i + 1) % count]["completion"])
        pair = {name: row[name] for name in ("id", "objective", "prompt")}
        pair |= {"chosen": row["completion"], "rejected": as_completion(other, row["prompt"])}
        if other.strip() and other.strip() != row["completion"].strip():
            made.append(pair)
    return made


def full_sentences(text: str) -> str:
    """A text up to its last full sentence or line; as it is where it has none."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)|\n", text)]
    return text[: ends[-1]].strip() if ends else text


def passages(text: str, *, size: int) -> list[str]:
    """`text` cut at line ends or spaces into pieces of at most about `size` characters, so that a split can part it."""
    pieces, start = [], 0
    while len(text) - start > size:
        end = max(text.rfind("\n", start, start + size), text.rfind(" ", start, start + size)) + 1
        end = end if end > start else start + size
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def dialogues(pairs: Iterable[Mapping[str, Any]]) -> Rows:
    """Pretraining text of comparisons: each prompt with its preferred reply (the other is no text to imitate)."""
    return [{"text": pair["prompt"] + pair["chosen"]} for pair in pairs]


def demonstrations_of(pairs: Iterable[Mapping[str, Any]]) -> Rows:
    """SFT rows: the preferred reply to each prompt."""
    return [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]


def capped(pairs: Sequence[Mapping[str, Any]], *, names: Sequence[str], each: int | None) -> Rows:
    """At most `each` rows of every objective, objectives taking turns, in the order given."""
    by_name = [[dict(p) for p in pairs if p["objective"] == name][:each] for name in names]
    longest = max(map(len, by_name))
    return [rows[i] for i in range(longest) for rows in by_name if i < len(rows)]


def unique_prompts(pairs: Sequence[Mapping[str, Any]]) -> Rows:
    """One {"id", "item", "prompt"} per distinct prompt; the item is the prompt's own number."""
    first: dict[str, str] = {}
    for pair in pairs:
        first.setdefault(pair["prompt"], pair["id"])
    return [{"id": identity, "item": identity, "prompt": prompt} for prompt, identity in first.items()]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines."""
    with open(path, "w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: str | Path) -> Rows:
    """What `write_rows` wrote."""
    with open(path, encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]
