"""`@stage`: every parameter is in the key, defaults are not, moved folders stay finished, a plan pickles."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from align.errors import UserError
from align.runs import Call, Metrics, Run, Workspace, fingerprint, open_run, planned, stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    width: int = 8
    depth: int = 2


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    shape: Shape = Shape()


@dataclass(frozen=True)
class OtherSettings:
    rate: float = 0.1


@dataclass(frozen=True)
class Place:
    """A value that is known by its content alone."""

    name: str
    content: str

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.content)


@stage
def source(work: Workspace, *, text: str, seed: int = 0) -> Metrics:
    """Write one file."""
    work.ledger.add(tokens=len(text))
    (work.folder / "text").write_text(text)
    return {"length": len(text)}


@stage(name="joined texts")
def joined(
    work: Workspace,
    *,
    first: Run,
    others: Sequence[Run] = (),
    named: Mapping[str, Run] | None = None,
    base: Run | None = None,
    training: Settings,
    either: Settings | OtherSettings = OtherSettings(),  # noqa: B008
    world: Place,
    labels: Sequence[str] = (),
    model: PreTrainedModel | None = None,
    seed: int = 0,
) -> Metrics:
    """The texts of its runs; `model` has a type that only a type checker knows."""
    runs = [first, *others, *(named or {}).values(), *([base] if base else [])]
    assert all(isinstance(run, Run) for run in runs) and (named is None or isinstance(named, dict))
    return {"text": "".join((run.path / "text").read_text() for run in runs)}


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    return {text: source(tmp_path / text, text=text).path for text in ("a", "b", "c", "d")}


def arguments(parts: Mapping[str, Path]) -> dict[str, object]:
    return {"first": parts["a"], "training": Settings(), "world": Place("w", "content")}


def test_it_works_once_and_then_only_reads(tmp_path: Path) -> None:
    first = source(tmp_path / "x", text="abc")
    (tmp_path / "x" / "text").write_text("not written again")
    assert source(str(tmp_path / "x"), text="abc") == first == open_run(tmp_path / "x")
    assert (tmp_path / "x" / "text").read_text() == "not written again"
    assert (first.stage, first.config, first.metrics) == ("source", {"text": "abc", "seed": 0}, {"length": 3})
    assert first.ledger["tokens"] == 3 and source.__doc__ == "Write one file."


def test_runs_are_opened_for_the_body_and_inputs_by_their_fingerprints(parts: dict[str, Path], tmp_path: Path) -> None:
    run = joined(
        tmp_path / "out", first=open_run(parts["a"]), others=[parts["b"]], named={"x": str(parts["c"])},
        base=planned(parts["d"]), training=Settings(rate=0.5), world=Place("w", "content"),
    )  # fmt: skip
    assert run.metrics == {"text": "abcd"} and run.stage == "joined texts"
    keys = {text: open_run(path).fingerprint for text, path in parts.items()}
    assert run.inputs == {
        "first": keys["a"], "others 0": keys["b"], "named x": keys["c"], "base": keys["d"],
        "world": fingerprint("content"),
    }  # fmt: skip
    assert run.config["training"] == {"rate": 0.5, "shape": {"width": 8, "depth": 2}}  # whole in the record
    assert run.config["world"] == {"name": "w", "content": "content"}


def test_every_parameter_is_in_the_key(parts: dict[str, Path], tmp_path: Path) -> None:
    changes: dict[str, object] = {
        "first": parts["b"], "others": [parts["b"]], "named": {"x": parts["b"]}, "base": parts["b"],
        "training": Settings(rate=0.2), "either": Settings(), "world": Place("w", "other content"), "labels": ["l"],
        "model": "m", "seed": 1,
    }  # fmt: skip
    assert set(changes) == {parameter.name for parameter in joined.parameters}
    base = arguments(parts)
    keys = [joined.call(tmp_path / "x", **{**base, **change}).identity().fingerprint for change in (
        {}, {"others": [parts["b"], parts["c"]]}, {"others": [parts["c"], parts["b"]]}, {"named": {"y": parts["b"]}},
        {"training": Settings(shape=Shape(depth=3))}, {"either": Settings(rate=0.2)}, {"labels": ["l", "m"]},
        *({name: value} for name, value in changes.items()),
    )]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_what_equals_its_default_is_left_out(parts: dict[str, Path], tmp_path: Path) -> None:
    base = joined.call(tmp_path / "x", **arguments(parts)).identity()
    named = {"others": (), "named": None, "base": None, "either": OtherSettings(), "labels": [], "seed": 0}
    again = joined.call(tmp_path / "x", **{**arguments(parts), **named}).identity()
    assert again.fingerprint == base.fingerprint
    # what the key holds, written out: only what has no default or differs from it, and of `training` nothing
    known = {"first": open_run(parts["a"]).fingerprint, "world": fingerprint("content")}
    assert base.fingerprint == fingerprint({"stage": "joined texts", "config": {"training": {}}, "inputs": known})


def test_a_renamed_folder_stays_finished(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"

    def work(folder: Path) -> Run:
        base = source(folder / "base", text="t")
        return joined(folder / "out", first=base, others=[base], training=Settings(), world=Place("w", "c"))

    first = work(old)
    (old / "out" / "kept").write_text("")
    old.rename(new)
    second = work(new)
    assert second.fingerprint == first.fingerprint and (new / "out" / "kept").exists()
    (new / "base").rename(new / "renamed")
    third = joined(
        new / "out", first=new / "renamed", others=[new / "renamed"], training=Settings(), world=Place("w", "c")
    )
    assert third == second


def test_unknown_missing_and_misplaced_arguments_are_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    base = arguments(parts)
    for change, words in (
        ({"sead": 1}, "unexpected keyword argument 'sead'"),
        ({"first": 3}, "first takes one run or path"),
        ({"others": parts["a"]}, "others takes many run"),
        ({"named": [parts["a"]]}, "named takes named run"),
        ({"labels": [open_run(parts["a"])]}, "labels is given a run; annotate it Run"),
    ):
        with pytest.raises(TypeError, match=words):
            joined.call(tmp_path / "x", **{**base, **change})
    with pytest.raises(TypeError, match="'joined texts': missing a required argument: 'first'"):
        joined.call(tmp_path / "x", training=Settings(), world=Place("w", "c"))
    with pytest.raises(UserError, match="is not a run directory"):
        joined(tmp_path / "x", **{**base, "first": tmp_path / "missing"})
    assert not list(tmp_path.glob("x*"))


def test_signatures_that_cannot_be_a_key_are_refused() -> None:
    def positional(work: Workspace, a: int) -> Metrics: ...
    def bare(work: Workspace, *, a) -> Metrics: ...
    def path(work: Workspace, *, a: Path | None = None) -> Metrics: ...
    def deep(work: Workspace, *, a: Mapping[str, Sequence[Run]]) -> Metrics: ...

    for function, words in (
        (positional, "after a \\*"),
        (bare, "annotate it"),
        (path, "a path is no key"),
        (deep, "runs are given as Run, Run | None, Sequence"),
    ):
        with pytest.raises(TypeError, match=words):
            stage(function)


def test_a_plan_is_made_before_its_runs_exist_and_pickles(tmp_path: Path) -> None:
    first = source.call(tmp_path / "base", text="t").named("the base")
    second = joined.call(
        tmp_path / "out", first=first.run, others=[first.run, tmp_path / "z"], training=Settings(), world=Place("w", "")
    )
    assert (first.name, second.name) == ("the base", "out")
    assert first.needs == () and second.needs == (tmp_path / "base", tmp_path / "z")
    plan: list[Call] = pickle.loads(
        pickle.dumps([first, replace(second, arguments={**second.arguments, "others": ()})])
    )
    assert plan[0] == first and plan[1].stage is joined
    with pytest.raises(UserError, match="is not a run directory"):
        plan[1]()
    assert [call().metrics for call in plan] == [{"length": 1}, {"text": "t"}]
    assert first.run.metrics == {"length": 1} and first.run.fingerprint == open_run(tmp_path / "base").fingerprint
    with pytest.raises(AttributeError):
        _ = planned(tmp_path / "base").nothing  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["stage"] == "joined texts"


def test_a_plan_sets_an_earlier_run_aside_and_a_call_alone_refuses_it(tmp_path: Path) -> None:
    first = source(tmp_path / "x", text="a")
    with pytest.raises(UserError, match=r'differs from this call \(text "a", not "b"\); give another --out'):
        source(tmp_path / "x", text="b")
    assert open_run(tmp_path / "x") == first
    assert source.call(tmp_path / "x", text="b")().config["text"] == "b"
    assert open_run(tmp_path / "x.replaced").fingerprint == first.fingerprint
    assert {p.name for p in tmp_path.iterdir()} == {"x", "x.replaced"}
