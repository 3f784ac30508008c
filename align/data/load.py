"""Rows from anywhere: JSON, CSV, Parquet, a Hugging Face data set directory, or a hub id; errors name file and line.

A source is one of
- a `.jsonl` or `.json` file with one JSON object per line; a `.json` file that is one array of objects, or one object
  with one such array in it, say {"data": [...]}; a `.csv` or `.tsv` file whose first line names the columns, all of
  them text; each of them also as `.gz`; a `.parquet` file;
- a directory written by `datasets.save_to_disk`, or one that holds data files, with `:split` after it if needed;
- a hub id, `org/name[/data_dir][:split]` (needs the network), for example `Anthropic/hh-rlhf/helpful-base:test`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from align.errors import UserError

Row = dict[str, Any]
Placed = tuple[str, Row]  # (where the row stands, for messages; the row)

_WHOLE = (".json", ".json.gz")  # lines, or one JSON value
_LINES = (".jsonl", ".jsonl.gz", *_WHOLE)
_TABLES = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
FILE_ENDS = (*_LINES, *_TABLES, ".parquet")
_MARK = b"\xef\xbb\xbf"  # the byte-order mark
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+)?")
_SURROGATE = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def load_rows(source: str | Path, *, columns: Sequence[str] = (), limit: int | None = None) -> list[Row]:
    """Read the rows of `source` (see the module docstring for what a source is).

    Args:
        source: file, directory[:split] or hub id[:split]; a missing split means "train", or the only one.
        columns: columns that every row must have.
        limit: read the first `limit` rows only.
    Raises:
        UserError: missing or empty file, truncated gzip, invalid JSON or UTF-8, a row that is not an object, a missing
            column, an unknown split; always with file and line (or row) and the fix.
    """
    return [row for _, row in iterate_rows(source, columns=columns, limit=limit)]


def iterate_rows(source: str | Path, *, columns: Sequence[str] = (), limit: int | None = None) -> Iterator[Placed]:
    """Yield (place, row) of `source`; arguments and errors as for `load_rows`."""
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} for {source}: ask for at least 1 row, or leave the limit out")
    seen = False
    for place, row in islice(_open(str(source)), limit):
        seen = True
        check_columns(row, columns, place=place)
        yield place, row
    if not seen:
        raise UserError(f"{source}: no rows in it; give a file with at least one row")


def check_columns(row: Row, columns: Sequence[str], *, place: str) -> None:
    """UserError naming `place` and the first of the columns that the row lacks."""
    for column in columns:
        if column not in row:
            have = ", ".join(sorted(row))
            raise UserError(f"{place}: no column '{column}' (it has: {have}); rename the column or add it")


def _open(source: str) -> Iterator[Placed]:
    path = Path(source).expanduser()
    if path.is_file():
        return _file_rows(path)
    if path.is_dir():
        return _directory_rows(path, split=None)
    stem, colon, split = source.rpartition(":")
    if colon and Path(stem).expanduser().is_dir():
        return _directory_rows(Path(stem).expanduser(), split=split)
    in_known_folder = str(path.parent) != "." and path.parent.is_dir()
    if in_known_folder or source.endswith(FILE_ENDS) or source.startswith(("/", ".", "~")):
        raise UserError(f"{source}: no such file or directory; check the path")
    if not _HUB_ID.fullmatch(stem if colon else source):
        raise UserError(f"{source}: no such file or directory, and not a hub id (org/name[/data_dir][:split])")
    name = stem if colon else source
    owner, title, *folder = name.split("/", 2)
    options = {"data_dir": folder[0] if folder else None}
    return _data_set_rows(f"{owner}/{title}", place=name, split=split if colon else None, **options)


# --- files -----------------------------------------------------------------------------------------------------------


def _file_rows(path: Path) -> Iterator[Placed]:
    if path.name.endswith(".parquet"):
        return _data_set_rows("parquet", place=str(path), split="train", data_files=str(path))
    if path.name.endswith(_WHOLE) and _is_one_value(path):
        return _array_rows(path)
    if path.name.endswith(_LINES):
        return _line_rows(path)
    for end, delimiter in _TABLES.items():
        if path.name.endswith(end):
            return _table_rows(path, delimiter=delimiter)
    raise UserError(f"{path}: unknown kind of file; give one of {', '.join(FILE_ENDS)}")


@contextmanager
def _opened(path: Path, read: list[int]) -> Iterator[BinaryIO]:
    """The file's bytes; UserError for one that cannot be read, after as many lines or rows as `read` says."""
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as handle:
            yield handle  # type: ignore[misc]
    except EOFError:
        raise UserError(f"{path}: gzip file cut off after line {read[0]}; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a sound gzip file after line {read[0]} ({error}); copy it again") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; fix its mode or owner") from None


def _line_rows(path: Path) -> Iterator[Placed]:
    """Rows of a JSON-lines file. Lines end at "\\n" only: texts hold U+2028 and similar, at which splitlines() cuts."""
    read = [0]
    with _opened(path, read) as handle:
        for read[0], line in enumerate(handle, start=1):
            if line.strip():
                yield f"{path} line {read[0]}", _parse(line, path=path, number=read[0])


def _is_one_value(path: Path) -> bool:
    """Whether a JSON file is an array, or an object that holds one, and not a row in every line."""
    with _opened(path, [0]) as handle:
        first = next((line for line in handle if line.removeprefix(_MARK).strip()), b"").removeprefix(_MARK).strip()
        more = next((line for line in handle if line.strip()), b"")
        if first.startswith(b"["):
            return True
        try:
            row = json.loads(first)
            return not more and len(_arrays(row)) == 1
        except ValueError:  # an object over several lines, or a damaged line
            handle.seek(0)
            return _is_json(handle.read())


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def _arrays(value: object) -> list[list[Row]]:
    """The arrays of objects in an object that is no row itself: with columns named after sets of rows."""
    named = {"data", "rows", "examples", "instances", "train"}
    held = value.items() if isinstance(value, dict) else ()
    return [v for k, v in held if k in named and isinstance(v, list) and v and all(isinstance(r, dict) for r in v)]


def _array_rows(path: Path) -> Iterator[Placed]:
    with _opened(path, [0]) as handle:
        content = handle.read()
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}: invalid JSON ({error.msg}); fix it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: unreadable JSON ({_brief(error)}); fix it") from None
    found = [value] if isinstance(value, list) else _arrays(value)
    if len(found) != 1:
        raise UserError(f"{path}: one JSON object without one array of rows in it; write an array, or one row per line")
    for number, row in enumerate(found[0], start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path} row {number}: {type(row).__name__} instead of an object; fix or delete that row")
        _check_surrogates(row, place=f"{path} row {number}")
        yield f"{path} row {number}", row


def _table_rows(path: Path, *, delimiter: str) -> Iterator[Placed]:
    """Rows of a table with a header; cells may hold line ends where they are quoted."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    read = [0]
    with _opened(path, read) as handle:
        text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
        table = csv.DictReader(text, delimiter=delimiter, strict=True)
        try:
            for number, row in enumerate(table, start=1):
                read[0] = table.line_num
                if None in row or None in row.values():
                    raise UserError(f"{path} row {number} (to line {read[0]}): not as many cells as the header; fix it")
                yield f"{path} row {number}", dict(row)
        except csv.Error as error:
            raise UserError(f"{path} after line {table.line_num}: no sound table ({error}); fix its quotes") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path} after line {read[0]}: not UTF-8 ({error.reason}); save it as UTF-8") from None


def _parse(line: bytes, *, path: Path, number: int) -> Row:
    try:
        row = json.loads(line.rstrip().decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} line {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        message = f"{path} line {number}: invalid JSON at column {error.colno} ({error.msg})"
        raise UserError(f"{message}; fix or delete that line (one object per line)") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested thousands deep
        raise UserError(f"{path} line {number}: unreadable JSON ({_brief(error)}); fix or delete that line") from None
    if not isinstance(row, dict):
        raise UserError(f"{path} line {number}: {type(row).__name__} instead of an object; write one object per line")
    if _SURROGATE.search(line):
        _check_surrogates(row, place=f"{path} line {number}")
    return row


def _check_surrogates(row: Row, *, place: str) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{place}: half of a surrogate pair (\\ud8xx); fix that escape") from None


# --- Hugging Face data sets ------------------------------------------------------------------------------------------


def _directory_rows(path: Path, *, split: str | None) -> Iterator[Placed]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        try:
            return _placed(_choose(load_from_disk(str(path)), split=split, place=str(path)), place=str(path))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: unreadable saved data set ({_brief(error)}); save it again") from None
    files = sorted(f for f in path.rglob("*") if f.name.endswith(FILE_ENDS) and not f.name.startswith("."))
    if not files:
        raise UserError(f"{path}: neither a saved data set nor data files ({', '.join(FILE_ENDS)}) in it")
    return _folder_rows(path, files=files, split=split)


def _folder_rows(path: Path, *, files: Sequence[Path], split: str | None) -> Iterator[Placed]:
    try:
        yield from _data_set_rows(str(path), place=str(path), split=split)
    except UserError:
        for file in files:  # the library does not say which line is bad; our reader does
            if not file.name.endswith(".parquet"):
                for _ in _file_rows(file):
                    pass
        raise


def _data_set_rows(name: str, *, place: str, split: str | None, **options: Any) -> Iterator[Placed]:
    """Rows through `datasets.load_dataset`; local files are read through a cache that is deleted afterwards."""
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    disable_progress_bars()
    local = Path(place).exists()
    with tempfile.TemporaryDirectory(prefix="align-data-") as cache:
        try:
            cache_options = {"cache_dir": cache, "keep_in_memory": True} if local else {}
            loaded = load_dataset(name, **options, **cache_options)
            data = _choose(loaded, split=split, place=place)
        except DatasetNotFoundError:
            raise UserError(f"{place}: neither a local path nor readable on the hub; check name and network") from None
        except (DatasetGenerationError, OSError, ValueError, RuntimeError) as error:
            fix = "fix its files" if local else "check the name and the network"
            raise UserError(f"{place}: cannot be read as a data set ({_brief(error)}); {fix}") from None
        yield from _placed(data, place=place)


def _choose(loaded: Any, *, split: str | None, place: str) -> Any:
    if not hasattr(loaded, "keys"):  # one unnamed split
        if split is not None:
            raise UserError(f"{place}: it has no named splits; leave out ':{split}'")
        return loaded
    names = sorted(loaded.keys())
    wanted = split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
    if wanted is None or wanted not in names:
        raise UserError(f"{place}: no split '{wanted or 'train'}'; write {place}:SPLIT with one of {', '.join(names)}")
    return loaded[wanted]


def _placed(data: Iterable[Row], *, place: str) -> Iterator[Placed]:
    for number, row in enumerate(data, start=1):
        yield f"{place} row {number}", dict(row)


def _brief(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:160] or type(cause).__name__
