"""Run directories: finished or absent, reused by fingerprint, resumed from what is complete, refused when damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from align.errors import UserError
from align.runs import Ledger, open_run, run_stage
from factories.made_runs import Body, run


def test_a_finished_stage_is_read_not_run(tmp_path: Path) -> None:
    body, path = Body(), tmp_path / "deep" / "run"
    first = run(path, body, inputs={"model": "abc"})
    again = run(path, body, inputs={"model": "abc"})
    assert body.calls == 1 and again == first == open_run(path)
    assert first.metrics == {"calls": 1} and first.config == {"a": 1} and first.inputs == {"model": "abc"}
    assert (first.ledger["tokens"], first.ledger["flops"]) == (7, 42.0)
    assert (first.ledger["samples_drawn"], first.ledger["scores_read"]) == (3, 2)
    assert first.ledger["seconds"] > 0 and first.ledger["peak_memory_mb"] > 1
    assert first.environment["versions"]["torch"]
    assert not path.with_name("run.partial").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {"a": 2}}, "a 1, not 2"),
        ({"config": {"a": 1, "deep": {"b": "x" * 99}}}, r'deep\.b absent, not "x{36}\.\.\.'),
        ({"stage": "other"}, "it is a run of the stage s, not other"),
        ({"inputs": {"model": "xyz"}}, "another input model"),
        ({"inputs": {"modle": "abc"}}, 'input model "abc", not absent; input modle absent, not "abc"'),
        ({"config": {name: 1 for name in "abcdef"}}, "b absent, not 1; c absent, not 1; d absent, not 1; and 2 more"),
    ],
)
def test_a_finished_run_of_another_call_is_refused_and_kept(change: dict, words: str, tmp_path: Path) -> None:
    body, path = Body(), tmp_path / "run"
    first = run(path, body, inputs={"model": "abc"})
    with pytest.raises(UserError, match=rf"differs from this call \({words}\); give another --out, or delete"):
        run(path, body, **{"inputs": {"model": "abc"}, **change})
    assert body.calls == 1 and open_run(path) == first


def test_a_body_that_raises_leaves_no_finished_folder_and_is_resumed(tmp_path: Path) -> None:
    body, path = Body(fails=(1,)), tmp_path / "run"
    with pytest.raises(RuntimeError, match="broken"):
        run(path, body)
    assert not path.exists() and (tmp_path / "run.partial" / "work-1").exists()
    with pytest.raises(UserError, match="was interrupted before it finished; run its command again"):
        open_run(path)
    assert run(path, body).metrics == {"calls": 2}
    assert body.found[1] == {"work-1", ".align-run.json"}  # the same stage finds its own unfinished work
    assert (path / "work-1").exists() and not (tmp_path / "run.partial").exists()


def test_unfinished_work_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    def stop(folder: Path, ledger: Ledger) -> dict[str, object]:
        raise UserError("a row is damaged")

    for config in ({"a": 1}, {"a": 2}):
        with pytest.raises(UserError, match="damaged"):
            run_stage(tmp_path / "run", stage="s", config=config, body=stop)
    run(tmp_path / "run", Body())
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_a_partial_behind_a_link_is_used(tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    (tmp_path / "run.partial").symlink_to(tmp_path / "big disk")
    assert run(tmp_path / "run", Body()).metrics == {"calls": 1}
    assert (tmp_path / "big disk" / "work-1").exists() and (tmp_path / "run").is_symlink()


def test_killed_between_its_last_line_and_its_name_a_stage_is_only_named(tmp_path: Path) -> None:
    body, path = Body(), tmp_path / "run"
    earlier = run(path, body)
    path.rename(tmp_path / "run.replaced")  # set aside by a call that was then killed
    first = run(path, body, config={"a": 2})
    path.rename(tmp_path / "run.partial")
    shutil.copytree(tmp_path / "run.replaced", path)
    assert run(path, body, config={"a": 2}, replace=True) == first and body.calls == 2 and earlier != first
    assert {p.name for p in tmp_path.iterdir()} == {"run", "run.replaced", "run.replaced-2"}


def test_without_posix_locks_a_stage_works_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from align.runs import folders

    monkeypatch.setattr(folders, "fcntl", None)
    for name in "ab":
        run_stage(tmp_path / name, stage="s", config={}, body=lambda *_: {})
    said = capsys.readouterr().err
    assert said.count("POSIX") == 1 and said.count("\n") == 1


def test_two_processes_never_work_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("align.runs.folders.time.sleep", lambda seconds: None)
    partial = tmp_path / "run.partial"
    partial.mkdir()
    other = os.open(partial, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    body = Body()
    with pytest.raises(UserError, match="another process is working in"):
        run(tmp_path / "run", body)
    os.close(other)
    assert body.calls == 0 and run(tmp_path / "run", body).metrics == {"calls": 1}


def test_several_processes_of_one_command_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun every rank would wait for the others' folder, and then write into it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    body = Body()
    with pytest.raises(UserError, match="2 processes .*without torchrun"):
        run(tmp_path / "a", body)
    assert not (tmp_path / "a").exists() and not (tmp_path / "a.partial").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(tmp_path / "a", body).metrics


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_nothing_looks_finished(number: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    wrapped = RuntimeError("could not serialise")
    wrapped.__cause__ = OSError(number, os.strerror(number))
    torch_says = "[enforce fail at inline_container.cc:672] . unexpected pos 768 vs 662"  # while it writes optimizer.pt
    texts = ("No space left on device (os error 28)", torch_says)
    for error in (OSError(number, os.strerror(number)), wrapped, *map(RuntimeError, texts)):
        with pytest.raises(UserError, match=r"no space left on the disk while writing .*run\.partial; free some space"):
            run(path, Body(fails=(1,), error=error))
        assert not path.exists()
    with pytest.raises(OSError, match="denied"):
        run(path, Body(fails=(1,), error=OSError(errno.EACCES, "denied")))


def test_damaged_and_missing_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(UserError, match="is not a run directory"):
        open_run(path)
    run(path, Body())
    content = json.loads((path / "run.json").read_text())
    for text in ((path / "run.json").read_text()[:-20], "[]", json.dumps({**content, "metrics": 1} | {"x": 0})[:9]):
        (path / "run.json").write_text(text)
        with pytest.raises(UserError, match=r"run\.json is damaged, or another program wrote it .* move"):
            open_run(path)
        with pytest.raises(UserError, match="is damaged"):
            run(path, Body())
    content.pop("ledger")
    (path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged"):
        open_run(path)
