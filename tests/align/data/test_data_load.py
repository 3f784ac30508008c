"""Rows load from every kind of source, and every bad source is one line that names file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from align.data import load_rows
from align.errors import UserError

ROWS = [
    {"id": "1", "text": "one\u2028still one\x85and on"},
    {"id": "2", "text": "zwei \u00e4\U0001f600"},
    {"id": "3", "text": "c"},
]


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_lines_end_at_line_feeds_only(tmp_path: Path, name: str) -> None:
    assert load_rows(write(tmp_path / name), columns=["text"]) == ROWS
    assert load_rows(str(tmp_path / name), limit=2) == ROWS[:2]


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert load_rows(path) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("wrap", [None, "data"])
def test_a_json_file_may_be_one_array(tmp_path: Path, indent: int | None, wrap: str | None) -> None:
    content = json.dumps({wrap: ROWS, "version": 1} if wrap else ROWS, indent=indent)
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + content.encode()))
    assert load_rows(tmp_path / "a.json") == load_rows(tmp_path / "b.json.gz") == ROWS
    assert load_rows(tmp_path / "a.json", limit=1) == ROWS[:1]


def test_one_row_in_a_json_file_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "a", "data": 3}\n', encoding="utf-8")
    assert load_rows(tmp_path / "a.json") == [{"text": "a", "data": 3}]


@pytest.mark.parametrize(("end", "delimiter"), [("csv", ","), ("tsv", "\t"), ("csv.gz", ",")])
def test_tables_have_text_in_every_cell(tmp_path: Path, end: str, delimiter: str) -> None:
    text = f'prompt{delimiter}completion\r\n"a\n""b"""{delimiter}1\r\n'.encode("utf-8-sig")
    (tmp_path / f"a.{end}").write_bytes(gzip.compress(text) if end.endswith("gz") else text)
    assert load_rows(tmp_path / f"a.{end}") == [{"prompt": 'a\n"b"', "completion": "1"}]


def test_hugging_face_directories(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    data = Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    assert load_rows(tmp_path / "one") == ROWS
    DatasetDict({"train": data, "test": data.select([2])}).save_to_disk(tmp_path / "two")
    assert load_rows(tmp_path / "two") == ROWS
    assert load_rows(f"{tmp_path / 'two'}:test") == ROWS[2:]
    with pytest.raises(UserError, match="no split 'dev'; write .*:SPLIT with one of test, train"):
        load_rows(f"{tmp_path / 'two'}:dev")


def test_a_folder_of_data_files_and_a_parquet_file(tmp_path: Path) -> None:
    from datasets import Dataset

    folder = tmp_path / "files"
    folder.mkdir()
    write(folder / "train.jsonl.gz")
    write(folder / "test.jsonl.gz", ROWS[:1])
    assert load_rows(folder) == ROWS
    assert load_rows(f"{folder}:test") == ROWS[:1]
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    assert load_rows(tmp_path / "a.parquet", columns=["id"]) == ROWS


def bad(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', r"a\.jsonl line 2: invalid JSON at column 13 .*fix or delete"),
        ("a.jsonl", b'{"text": "a"}\n\n{"id": 1}\n', r"a\.jsonl line 3: no column 'text' \(it has: id\); rename"),
        ("a.jsonl", b'{"text": "a"}\n[1, 2]\n', r"a\.jsonl line 2: list instead of an object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl line 2: not UTF-8 .*save the file as UTF-8"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', r"a\.jsonl line 1: half of a surrogate pair"),
        ("a.jsonl", b"\n \n", r"a\.jsonl: no rows in it"),
        ("a.jsonl", b"", r"a\.jsonl: no rows in it"),
        ("a.jsonl.gz", b'{"text": "a"}\n', r"a\.jsonl\.gz: not a sound gzip file after line 0"),
        ("a.txt", b"text\na\n", r"a\.txt: unknown kind of file; give one of \.jsonl"),
        ("a.json", b'[{"text": "a"}, 3]', r"a\.json row 2: int instead of an object"),
        ("a.json", b'[{"text": "a"},\n {"text" "b"}]', r"a\.json line 2: invalid JSON"),
        ("a.json", b'{\n"text": "a"\n}', r"a\.json: one JSON object without one array of rows in it"),
        ("a.csv", b"text,id\na,1,2\n", r"a\.csv row 1 \(to line 2\): not as many cells as the header"),
        ("a.csv", b"text,id\na\n", r"a\.csv row 1 \(to line 2\): not as many cells as the header"),
        ("a.csv", b'text\n"a" b\n', r"a\.csv after line 1: no sound table"),
        ("a.tsv", b"text\n\xff\n", r"a\.tsv after line 0: not UTF-8"),
        ("a.csv", b"text,id\n", r"a\.csv: no rows in it"),
    ],
)
def test_bad_files_name_the_place_and_the_mend(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_rows(bad(tmp_path / name, content), columns=["text"])
    assert "\n" not in str(caught.value)


def test_a_sound_surrogate_pair_is_read(tmp_path: Path) -> None:
    assert load_rows(bad(tmp_path / "a.jsonl", b'{"text": "\\ud83d\\ude00"}\n')) == [{"text": "\U0001f600"}]


def test_a_truncated_gzip_says_how_far_it_got(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", [{"text": f"row {i} {'x' * (i % 50)}"} for i in range(5000)])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: gzip file cut off after line \d+; copy or download it again"):
        load_rows(path)


def test_missing_sources_and_bad_limits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing.jsonl: no such file or directory; check the path"):
        load_rows(tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match="no such file or directory, and not a hub id"):
        load_rows("nothing here")
    with pytest.raises(UserError, match="neither a saved data set nor data files"):
        load_rows(tmp_path)
    with pytest.raises(UserError, match="limit=0"):
        load_rows(write(tmp_path / "a.jsonl"), limit=0)


def test_a_hub_id_without_network_is_one_line() -> None:
    with pytest.raises(UserError, match="nobody/nothing") as caught:
        load_rows("nobody/nothing:train")
    assert "\n" not in str(caught.value)


def test_a_bad_line_in_a_folder_is_named(tmp_path: Path) -> None:
    bad(tmp_path / "train.jsonl", b'{"text": "a"}\n{"text": \n')
    with pytest.raises(UserError, match=r"train\.jsonl line 2: invalid JSON"):
        load_rows(tmp_path)


def test_every_real_file_loads(shared_data: Path) -> None:
    manifest = json.loads((shared_data / "MANIFEST.json").read_text())
    assert manifest
    rows = load_rows(shared_data / "hh_rlhf" / "harmless_base_test_multi_turn.jsonl.gz", columns=["prompt", "chosen"])
    assert len(rows) == 1361
