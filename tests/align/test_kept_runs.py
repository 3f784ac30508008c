"""What a run finds in its way is kept: an earlier run set aside whole, a stranger's files never touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from align.errors import UserError
from align.runs import Ledger, open_run, run_stage
from align.runs.derived import derive
from align.runs.folders import holds_only_its_own
from factories.made_runs import Body, run


def test_an_experiment_sets_an_earlier_run_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body, path, aside = Body(), tmp_path / "run", tmp_path / "run.replaced"
    first = run(path, body)
    second = run(path, body, config={"a": 2}, replace=True)
    assert body.calls == 2 and second.fingerprint != first.fingerprint
    assert not (path / "work-1").exists() and (path / "work-2").exists()  # nothing of the old run is left
    assert capsys.readouterr().err == f"align: {path} held an earlier run; it is kept as {aside} until you delete it\n"
    assert open_run(aside).fingerprint == first.fingerprint and (aside / "work-1").exists()
    run(path, body, config={"a": 3}, replace=True)  # a marked X.replaced is no leftover: it stays
    assert {p.name for p in tmp_path.iterdir()} == {"run", "run.replaced", "run.replaced-2"}
    assert [open_run(tmp_path / name).config["a"] for name in ("run.replaced", "run.replaced-2", "run")] == [1, 2, 3]


def test_an_experiment_refuses_a_run_of_another_stage(tmp_path: Path) -> None:
    body, path = Body(), tmp_path / "run"
    first = run(path, body)
    with pytest.raises(UserError, match="it is a run of the stage s, not other"):
        run(path, body, stage="other", replace=True)
    assert body.calls == 1 and open_run(path) == first and {p.name for p in tmp_path.iterdir()} == {"run"}


def test_a_run_that_comes_while_another_works_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    theirs = run(elsewhere, Body(), config={"a": 2})

    def body(folder: Path, ledger: Ledger) -> dict[str, object]:
        elsewhere.rename(path)
        return {}

    with pytest.raises(UserError, match=r"differs from this call \(a 2, not 1\)"):
        run_stage(path, stage="s", config={"a": 1}, body=body)
    assert open_run(path).fingerprint == theirs.fingerprint and (path / "work-1").exists()
    assert run(path, Body(), replace=True).config == {"a": 1}  # the finished work has kept its .partial name
    assert {p.name for p in tmp_path.iterdir()} == {"run", "run.replaced"}
    assert open_run(tmp_path / "run.replaced").fingerprint == theirs.fingerprint


def test_whether_a_folder_holds_only_what_its_stage_left(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(path, Body())
    path.rename(tmp_path / "moved")
    path = tmp_path / "moved"
    assert holds_only_its_own(path)
    (path / ".align-run.json.12-0123abcd.tmp").write_text("{")  # a mark that a kill left half written
    assert holds_only_its_own(path)
    (path / ".align-run.json.notes").write_text("precious")
    assert not holds_only_its_own(path)
    (path / ".align-run.json.notes").unlink()
    state = (path / "work-1").stat()
    (path / "work-1").write_text("HALF")  # as many bytes
    os.utime(path / "work-1", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert not holds_only_its_own(path)


def test_a_partial_with_a_file_named_like_the_mark_is_a_strangers(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / ".align-run.json.notes").write_text("precious")
    with pytest.raises(UserError, match=r"run\.partial is in the way"):
        run(tmp_path / "run", Body())


@pytest.mark.parametrize("kind", ["file", "changed", "link", "link to the run"])
def test_a_run_with_a_users_files_is_set_aside_whole(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body, path, elsewhere = Body(), tmp_path / "run", tmp_path / "elsewhere"
    run(path, body)
    if kind == "file":
        (path / "notes").mkdir()
        (path / "notes" / "mine.txt").write_text("precious")
    elif kind == "changed":
        (path / "work-1").write_text("precious")
    elif kind == "link":
        (path / "link").symlink_to(tmp_path)
    else:
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    kept = {p.relative_to(path) for p in path.rglob("*")}
    assert run(path, body, config={"a": 2}, replace=True).config == {"a": 2}
    aside = tmp_path / "run.replaced"
    assert {p.relative_to(aside) for p in aside.rglob("*")} == kept and open_run(aside).config == {"a": 1}
    assert f"it is kept as {aside}" in capsys.readouterr().err
    (path / "notes.txt").write_text("precious, too")
    run(path, body, config={"a": 3}, replace=True)
    assert (tmp_path / "run.replaced-2" / "notes.txt").read_text() == "precious, too" and aside.exists()


def test_a_run_without_a_mark_is_read_and_never_replaced(tmp_path: Path) -> None:
    body, path = Body(), tmp_path / "run"
    first = run(path, body)
    (path / ".align-run.json").unlink()  # as earlier versions left their runs
    assert run(path, body) == first and body.calls == 1
    with pytest.raises(UserError, match="was written by an earlier version of this program"):
        run(path, body, config={"a": 2}, replace=True)
    assert open_run(path) == first and body.calls == 1


def test_another_calls_unfinished_work_is_kept_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body, path = Body(fails=(1, 2)), tmp_path / "run"
    for config in ({"a": 1}, {"a": 2}):
        with pytest.raises(RuntimeError):
            run(path, body, config=config)
    run(path, body, config={"a": 3})
    assert body.found == [{".align-run.json"}] * 3
    assert (tmp_path / "run.partial-2" / "work-1").exists() and (tmp_path / "run.partial-3" / "work-2").exists()
    assert "unfinished work of another call (a 1, not 2); it is kept as" in capsys.readouterr().err


def test_a_failing_rerun_keeps_the_finished_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(path, Body())
    with pytest.raises(RuntimeError):
        run(path, Body(fails=(1,)), config={"a": 2}, replace=True)
    assert open_run(path).config == {"a": 1}


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_no_stage_wrote_is_never_replaced(kind: str, tmp_path: Path) -> None:
    body, path = Body(), tmp_path / "data"
    kept = path / "rows.jsonl" if kind == "folder" else path
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("precious")
    with pytest.raises(UserError, match="exists and is not a run; give another --out"):
        run(path, body)
    assert kept.read_text() == "precious" and body.calls == 0
    with pytest.raises(UserError, match="cannot be a run directory"):
        run(Path("."), body)


@pytest.mark.parametrize("way", ["file", "folder", "link", "dangling link"])
def test_a_strangers_partial_is_never_touched(way: str, tmp_path: Path) -> None:
    body, partial, elsewhere = Body(), tmp_path / "run.partial", tmp_path / "elsewhere"
    if way == "folder":
        partial.mkdir()
        (partial / "fingerprint").write_text("0123456789abcdef\n")  # what earlier versions left there
    elif way == "file":
        partial.write_text("precious")
    else:
        partial.symlink_to(elsewhere)
        if way == "link":
            elsewhere.mkdir()
            (elsewhere / "precious").write_text("")
    before = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"run\.partial is in the way and no stage of this version made it"):
        run(tmp_path / "run", body)
    assert sorted(tmp_path.rglob("*")) == before and body.calls == 0


def test_a_strangers_replaced_is_never_touched(tmp_path: Path) -> None:
    body, path, stranger = Body(), tmp_path / "run", tmp_path / "run.replaced"
    run(path, body)
    stranger.mkdir()
    (stranger / "precious").write_text("")
    run(path, body, config={"a": 2}, replace=True)
    assert {p.name for p in tmp_path.iterdir()} == {"run", "run.replaced", "run.replaced-2"}
    assert [p.name for p in stranger.iterdir()] == ["precious"]


def test_a_derived_model_of_another_record_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "soup"

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "model").write_text("weights")

    for weight in (1, 1, 2):
        derive(out, record={"weight": weight}, file="soup.json", make=make)
    assert {p.name for p in tmp_path.iterdir()} == {"soup", "soup.replaced"}
    assert json.loads((tmp_path / "soup.replaced" / "soup.json").read_text()) == {"weight": 1}
    assert capsys.readouterr().err.count(f"it is kept as {tmp_path / 'soup.replaced'}") == 1
