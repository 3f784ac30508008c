"""Run directories: finished or absent, reused by fingerprint, resumed from what is complete, refused when damaged."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from align.errors import UserError
from align.runs import Ledger, fingerprint, jsonable, last_checkpoint, model_dir, open_run, run_stage, write_json


class Body:
    """A stage's body that counts its calls, and fails at those that it is told to."""

    def __init__(self, *, fails: tuple[int, ...] = (), error: Exception | None = None) -> None:
        self.calls, self.fails, self.error = 0, fails, error or RuntimeError("broken")
        self.found: list[set[str]] = []

    def __call__(self, folder: Path, ledger: Ledger) -> Mapping[str, object]:
        self.calls += 1
        self.found.append({p.name for p in folder.iterdir()})
        (folder / f"work-{self.calls}").write_text("half")
        ledger.add(tokens=7, flops=42.0, samples_drawn=3, scores_read=2)
        if self.calls in self.fails:
            raise self.error
        return {"calls": self.calls}


def run(path: Path, body: Body, *, config: object = None, stage: str = "s", inputs: dict[str, str] | None = None):
    return run_stage(path, stage=stage, config=config or {"a": 1}, body=body, inputs=inputs)


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
    "change", [{"config": {"a": 2}}, {"stage": "other"}, {"inputs": {"model": "xyz"}}, {"inputs": {"modle": "abc"}}]
)
def test_a_change_of_config_stage_or_input_runs_it_again(change: dict, tmp_path: Path) -> None:
    body, path = Body(), tmp_path / "run"
    first = run(path, body, inputs={"model": "abc"})
    second = run(path, body, **{"inputs": {"model": "abc"}, **change})
    assert body.calls == 2 and second.fingerprint != first.fingerprint
    assert not (path / "work-1").exists() and (path / "work-2").exists()  # nothing of the old run is left


def test_a_body_that_raises_leaves_no_finished_folder_and_is_resumed(tmp_path: Path) -> None:
    body, path = Body(fails=(1,)), tmp_path / "run"
    with pytest.raises(RuntimeError, match="broken"):
        run(path, body)
    assert not path.exists() and (tmp_path / "run.partial" / "work-1").exists()
    with pytest.raises(UserError, match="was interrupted before it finished; run its command again"):
        open_run(path)
    assert run(path, body).metrics == {"calls": 2}
    assert body.found[1] == {"work-1", "fingerprint"}  # the same stage finds its own unfinished work
    assert (path / "work-1").exists() and not (tmp_path / "run.partial").exists()


def test_another_stages_unfinished_work_is_dropped(tmp_path: Path) -> None:
    body, path = Body(fails=(1,)), tmp_path / "run"
    with pytest.raises(RuntimeError):
        run(path, body)
    run(path, body, config={"a": 2})
    assert body.found[1] == {"fingerprint"}


def test_a_failing_rerun_keeps_the_finished_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(path, Body())
    with pytest.raises(RuntimeError):
        run(path, Body(fails=(1,)), config={"a": 2})
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


def test_killed_between_its_last_line_and_its_name_a_stage_is_only_named(tmp_path: Path) -> None:
    body, path = Body(), tmp_path / "run"
    first = run(path, body)
    path.rename(tmp_path / "run.partial")
    (tmp_path / "run.replaced").mkdir()  # an earlier run, set aside
    assert run(path, body) == first and body.calls == 1
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_two_processes_never_work_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("align.runs.lifecycle.time.sleep", lambda seconds: None)
    partial = tmp_path / "run.partial"
    partial.mkdir()
    other = os.open(partial, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    body = Body()
    with pytest.raises(UserError, match="another process is working in"):
        run(tmp_path / "run", body)
    os.close(other)
    assert body.calls == 0 and run(tmp_path / "run", body).metrics == {"calls": 1}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_nothing_looks_finished(number: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    wrapped = RuntimeError("could not serialise")
    wrapped.__cause__ = OSError(number, os.strerror(number))
    for error in (OSError(number, os.strerror(number)), wrapped, RuntimeError("No space left on device (os error 28)")):
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
        with pytest.raises(UserError, match=r"run\.json is damaged .* delete the folder"):
            open_run(path)
        with pytest.raises(UserError, match="is damaged"):
            run(path, Body())
    content.pop("ledger")
    (path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged"):
        open_run(path)


def test_fingerprints_depend_on_values_not_on_order_or_type_of_container() -> None:
    @dataclass(frozen=True)
    class Config:
        rate: float
        path: Path

    assert fingerprint({"a": 1, "b": (2, 3)}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint(Config(0.1, Path("x"))) == fingerprint({"rate": 0.1, "path": "x"})
    assert len({fingerprint(v) for v in ({"a": 1}, {"a": 2}, {"a": "1"}, {"a": None}, {"a": [1]}, {"A": 1})}) == 6
    assert fingerprint({}) == "44136fa355b3678a"  # of sha256("{}"): stable over versions and machines
    with pytest.raises(TypeError, match="set cannot be written"):
        jsonable({"a": {1}})


def test_json_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})

    def stop(*arguments: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError, match="power cut"):
        write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}


def checkpoint(folder: Path, step: int, state: str | None) -> Path:
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    (place / "model.safetensors").write_text("x")
    if state is not None:
        (place / "trainer_state.json").write_text(state)
    return place


def test_the_newest_complete_checkpoint_is_found_and_others_deleted(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "none") is None
    old, new = checkpoint(tmp_path, 20, "{}"), checkpoint(tmp_path, 100, "{}")
    cut, bare = checkpoint(tmp_path, 120, '{"epoch": 1'), checkpoint(tmp_path, 140, None)
    assert last_checkpoint(tmp_path) == new  # 100 is after 20, as numbers
    assert old.exists() and not cut.exists() and not bare.exists()


def test_model_dir(tmp_path: Path) -> None:
    assert model_dir("gpt2") == "gpt2" and model_dir("org/name") == "org/name"
    for text in ("./nothing", "/nothing/here", "a/b/c", str(tmp_path / "typo")):
        with pytest.raises(UserError, match="does not exist; give a run, a Hugging Face directory or a hub id"):
            model_dir(text)
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    with pytest.raises(UserError, match=r"model has no config\.json"):
        model_dir(folder)
    (folder / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has no tokenizer; save one there"):
        model_dir(folder)
    (folder / "model" / "tokenizer.json").write_text("{}")
    assert model_dir(folder) == model_dir(folder / "model") == str(folder / "model")
    (tmp_path / "cut.partial").mkdir()
    with pytest.raises(UserError, match="was interrupted"):
        model_dir(tmp_path / "cut")


def test_a_ledger_only_grows() -> None:
    ledger = Ledger()
    with ledger.clock():
        sum(range(10_000))
    ledger.add(tokens=1)
    ledger.add(tokens=2, flops=1.5)
    assert (ledger.tokens, ledger.flops) == (3, 1.5) and ledger.seconds > 0
    with pytest.raises(ValueError, match="negative"):
        ledger.add(tokens=-1)
