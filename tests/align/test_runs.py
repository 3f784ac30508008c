"""Run directories: finished or absent, reused by fingerprint, resumed from what is complete, refused when damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from align.errors import UserError
from align.runs import (
    Ledger,
    Run,
    checkpoints,
    fingerprint,
    jsonable,
    last_checkpoint,
    model_dir,
    open_run,
    run_stage,
    write_json,
)
from align.runs.derived import derive
from align.runs.folders import holds_only_its_own


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


def run(
    path: Path, body: Body, *, config: object = None, stage: str = "s", inputs: dict[str, str] | None = None,
    replace: bool = False,
) -> Run:  # fmt: skip
    return run_stage(path, stage=stage, config=config or {"a": 1}, body=body, inputs=inputs, replace=replace)


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


def test_another_calls_unfinished_work_is_kept_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body, path = Body(fails=(1, 2)), tmp_path / "run"
    for config in ({"a": 1}, {"a": 2}):
        with pytest.raises(RuntimeError):
            run(path, body, config=config)
    run(path, body, config={"a": 3})
    assert body.found == [{".align-run.json"}] * 3
    assert (tmp_path / "run.partial-2" / "work-1").exists() and (tmp_path / "run.partial-3" / "work-2").exists()
    assert "unfinished work of another call (a 1, not 2); it is kept as" in capsys.readouterr().err


def test_unfinished_work_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    def stop(folder: Path, ledger: Ledger) -> dict[str, object]:
        raise UserError("a row is damaged")

    for config in ({"a": 1}, {"a": 2}):
        with pytest.raises(UserError, match="damaged"):
            run_stage(tmp_path / "run", stage="s", config=config, body=stop)
    run(tmp_path / "run", Body())
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


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


def test_a_setting_that_was_renamed_keeps_its_fingerprints() -> None:
    @dataclass(frozen=True)
    class Config:
        train_all: bool = True

    assert fingerprint(Config()) == fingerprint({"rest": True}) != fingerprint({"rest": False})
    assert fingerprint([{"settings": {"train_all": True}}]) == fingerprint([{"settings": {"rest": True}}])
    assert jsonable(Config()) == {"train_all": True}  # what a run records has today's names


def test_json_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})

    def stop(*arguments: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError, match="power cut"):
        write_json(file, {"a": 2})
    with pytest.raises(TypeError):
        write_json(file, {"a": {1}})
    assert json.loads(file.read_text()) == {"a": 1} and {p.name for p in tmp_path.iterdir()} == {"x.json"}


def test_many_writers_and_readers_of_one_json(tmp_path: Path) -> None:
    file, stop = tmp_path / "x.json", threading.Event()
    (tmp_path / "x.json.tmp").write_text("another program's")
    write_json(file, {"writer": -1, "text": ""})
    failures: list[BaseException] = []

    def guarded(work) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        while not stop.is_set():
            assert len(json.loads(file.read_text())) == 2

    def write(number: int) -> None:
        for _ in range(20):
            write_json(file, {"writer": number, "text": "x" * 20_000})

    readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(2)]
    writers = [threading.Thread(target=guarded, args=(lambda n=n: write(n),)) for n in range(4)]
    for thread in [*readers, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not failures and (tmp_path / "x.json.tmp").read_text() == "another program's"
    assert {p.name for p in tmp_path.iterdir()} == {"x.json", "x.json.tmp"}


def checkpoint(folder: Path, step: int, state: str | None) -> Path:
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    (place / "model.safetensors").write_text("x")
    if state is not None:
        (place / "trainer_state.json").write_text(state)
    return place


def test_the_newest_complete_checkpoint_is_found_and_others_deleted(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "none") is None
    folder = checkpoints.claim(tmp_path / "checkpoints")
    old, new = checkpoint(folder, 20, "{}"), checkpoint(folder, 100, "{}")
    cut, bare = checkpoint(folder, 120, '{"epoch": 1'), checkpoint(folder, 140, None)
    (folder / "checkpoint-mine").mkdir()
    assert last_checkpoint(folder) == new  # 100 is after 20, as numbers
    assert old.exists() and not cut.exists() and not bare.exists() and (folder / "checkpoint-mine").exists()
    checkpoints.drop(folder)
    assert not folder.exists()


def test_checkpoints_of_a_stranger_are_never_touched(tmp_path: Path) -> None:
    bare = checkpoint(tmp_path, 140, None)
    assert last_checkpoint(tmp_path) is None
    with pytest.raises(UserError, match="is in the way and no training made it"):
        checkpoints.claim(tmp_path)
    checkpoints.drop(tmp_path)
    assert bare.exists()


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


def test_settings_that_came_later_are_in_no_fingerprint_at_their_default() -> None:
    """The expected ones are those of the code before there were looks, trackers, precision and templates to set."""
    from align.methods import METHODS
    from align.training.reward_model import RewardModelConfig
    from align.training.sft import SFTConfig_

    former = {
        "dpo": "bb7ccb102fc512c0",
        "morlhf": "50ec190bd10215ac",
        "ric": "21be17f5afea2cdb",
        "kto": "0693598da946629c",
    }
    assert {name: fingerprint(METHODS[name].Config()) for name in former} == former
    assert (fingerprint(SFTConfig_()), fingerprint(RewardModelConfig())) == ("e1755d428a6917a9", "60e9cfe86bf5760b")
    dpo = METHODS["dpo"]
    changed = (
        {"lora_dropout": 0.1, "lora_r": 2},
        {"eval_steps": 5},
        {"report_to": ("tensorboard",)},
        {"lora_r": 2},
        {},
    )
    assert len({fingerprint(dpo.Config(**more)) for more in changed}) == len(changed)
    assert len({fingerprint(SFTConfig_(**more)) for more in ({"merge_adapter": False}, {"template": "hh"}, {})}) == 3
