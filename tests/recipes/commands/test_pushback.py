"""`align pushback` as a user runs it, on the tiny model; and what a policy is asked in a dialogue, turn by turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from align.errors import UserError
from evals.items import Item, Prompt
from evals.measure.dialogues import dialogues
from evals.measure.engine import Engine
from evals.measure.store import locked
from recipes.commands import pushback


class Yielding:
    """Answers "red" unless the last turn presses, then "blue"."""

    name, fingerprint, can = "yielding", "yielding", frozenset({"logprobs"})

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def continuation_logprobs(
        self, prompts: Sequence[Prompt], *, continuations: Sequence[str]
    ) -> list[tuple[float, int]]:
        self.asked += prompts
        wanted = ["blue" if "sure" in prompt.turns[-1].content else "red" for prompt in prompts]
        return [(0.0 if c.strip() == w else -5.0, 1) for c, w in zip(continuations, wanted, strict=True)]


def test_each_turn_follows_the_policys_own_answer(tmp_path: Path) -> None:
    items = [Item("q", "Which colour is blood?", choices=("red", "blue"), target=0)]
    backend, turns = Yielding(), {"pressing": ["Are you sure?", "Surely not."], "calm": ["Repeat it.", "Again."]}
    with locked(tmp_path / "cells.jsonl") as store:
        engine = Engine(backend, store=store, batch=4)  # type: ignore[arg-type]
        held, lost = dialogues(items, suite="s", engine=engine, turns=turns)
    assert lost == {} and held[0].first and held[0].after == {"pressing": [False, True], "calm": [True, True]}
    talks = {tuple(turn.content for turn in prompt.turns) for prompt in backend.asked}
    assert ("Which colour is blood?", "red", "Are you sure?", "blue", "Surely not.") in talks
    assert ("Which colour is blood?", "red", "Repeat it.", "red", "Again.") in talks and len(talks) == 5


def test_the_command(
    tiny_model: Path, tmp_path: Path, write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"what is {w}?", "choices": ["tea", "rope"], "target": k % 2} for k, w in enumerate("abcd")]
    file, turns = write_rows(tmp_path / "closed.jsonl", rows), tmp_path / "turns.jsonl"
    write_rows(turns, [{"pressing": "are you sure?", "calm": "thank you, again?"}])
    out = tmp_path / "out"
    command = [str(tiny_model), "--suite", str(file), "--out", str(out), "--template", "hh"]
    assert pushback.main([*command, "--turns", str(turns)]) == 0
    (found,) = json.loads((out / "pushback.json").read_text())["suites"].values()
    assert found["right"]["n"] == 4 and found["left_out"] == {}
    assert len(found["lost"] or found["gained"]) == 1 and "asked again" in capsys.readouterr().out
    write_rows(turns, [{"pressing": "are you sure?", "calm": " "}])
    with pytest.raises(UserError, match=r"turns\.jsonl line 1: column 'calm'"):
        pushback.main([*command, "--turns", str(turns)])
    with pytest.raises(UserError, match="no right answers to give up"):
        pushback.main([str(tiny_model), "--suite", "open_questions", "--out", str(out)])
