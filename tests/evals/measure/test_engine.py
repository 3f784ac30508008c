"""The engine and its store: every cell once, nothing twice, whatever interrupts; Missing is never a value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from align.errors import UserError
from align.turns import Turn
from evals.backends.base import Completion, Generation
from evals.items import Item, Missing, Prompt, digest, seed_of
from evals.measure.cells import Cell, ask
from evals.measure.engine import Engine, cell_key
from evals.measure.measurements import Choices, CompletionOf, Comprehension, RefusalMargin, own_measurements
from evals.measure.store import CellStore, locked
from evals.shifts.base import Probe, Shift
from evals.suites.base import SAFETY, Kind

GENERATION = Generation(max_new_tokens=8)
PLAIN = Shift("plain", "none", "none", lambda text, rng: Prompt.user(text))
NOISE = Shift("noise", "noise", "mismatched", lambda text, rng: Prompt.user(f"{text} {rng.random():.6f}"))
LOUD = Shift(
    "loud", "style", "mismatched", lambda text, rng: Prompt.user(text.upper()), decode=str.lower,
    probe=lambda rng: Probe(Prompt.user("SAY TEA"), lambda answer: "tea" in answer.lower()),
)  # fmt: skip
BROKEN = Shift("broken", "payload", "mismatched", lambda text, rng: Missing("llm_failed", "no answer"))
ITEMS = [Item(f"i{n}", f"question {n} " + "x" * n, label="harmful" if n % 2 else "benign") for n in range(7)]


class Fake:
    """Answers with the prompt's last turn; counts what it was asked; fails when told to."""

    name, can = "fake", frozenset({"system", "prefill", "logprobs"})

    def __init__(self, fingerprint: str = "f0", *, die_after: int | None = None, fail: str | None = None) -> None:
        self.fingerprint, self.asked, self.die_after, self.fail = fingerprint, [], die_after, fail

    def generate(self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]) -> list[Any]:
        if self.die_after is not None and len(self.asked) >= self.die_after:
            raise KeyboardInterrupt
        self.asked += [(p.turns[-1].content, s) for p, s in zip(prompts, seeds, strict=True)]
        if self.fail:
            return [Missing(self.fail, "down") for _ in prompts]
        return [Completion(f"you said {p.turns[-1].content}", 3, True) for p in prompts]

    def continuation_logprobs(self, prompts: Sequence[Prompt], *, continuations: Sequence[str]) -> list[Any]:
        return [(-float(len(c)), 1) for c in continuations]


def engine(backend: Fake, path: Path, *, batch: int = 2) -> Engine:
    return Engine(backend, store=CellStore(path), batch=batch)


def values(cells: Sequence[Cell], name: str = "completion") -> list[Any]:
    return [cell.value(name) for cell in cells]


def test_a_second_run_asks_nothing_and_says_the_same(tmp_path: Path) -> None:
    asked = ask(ITEMS, suite="s", shifts=[PLAIN, NOISE])
    first, again = Fake(), Fake()
    one = engine(first, tmp_path / "c.jsonl").run(asked, measurements=[CompletionOf(GENERATION)])
    two = engine(again, tmp_path / "c.jsonl").run(asked, measurements=[CompletionOf(GENERATION)])
    assert len(first.asked) == 14 and again.asked == [] and values(one) == values(two)
    assert [c.item.id for c in one] == [i.id for i in ITEMS] * 2, "in the order asked"
    assert values(one)[3]["text"] == "you said question 3 xxx"


def test_an_interrupted_run_goes_on_with_at_most_one_batch_redone(tmp_path: Path) -> None:
    asked = ask(ITEMS, suite="s", shifts=[PLAIN, NOISE])
    whole = engine(Fake(), tmp_path / "whole.jsonl").run(asked, measurements=[CompletionOf(GENERATION)])
    path, dead, rest = tmp_path / "c.jsonl", Fake(die_after=6), Fake()
    with pytest.raises(KeyboardInterrupt):
        engine(dead, path).run(asked, measurements=[CompletionOf(GENERATION)])
    with path.open("a") as file:
        file.write('{"key":"half a li')  # the line that a kill -9 cut
    resumed = engine(rest, path).run(asked, measurements=[CompletionOf(GENERATION)])
    assert len(dead.asked) == 6 and len(rest.asked) == 8
    assert not set(dead.asked) & set(rest.asked) and values(resumed) == values(whole)
    assert len(path.read_text().splitlines()) == 14


def test_a_new_shift_or_item_changes_nothing_else(tmp_path: Path) -> None:
    path, backend = tmp_path / "c.jsonl", Fake()
    engine(backend, path).run(ask(ITEMS[:4], suite="s", shifts=[NOISE]), measurements=[CompletionOf(GENERATION)])
    before = dict(backend.asked)
    more = Fake()
    engine(more, path).run(ask(ITEMS, suite="s", shifts=[PLAIN, NOISE]), measurements=[CompletionOf(GENERATION)])
    assert len(more.asked) == 7 + 3 and not set(before) & set(dict(more.asked))


@pytest.mark.parametrize(
    "change",
    [
        lambda a, m, f: (a, m, "f1"),
        lambda a, m, f: (a, CompletionOf(replace(GENERATION, max_new_tokens=9)), f),
        lambda a, m, f: (a, CompletionOf(replace(GENERATION, temperature=1.0)), f),
        lambda a, m, f: (a, CompletionOf(replace(GENERATION, stop=("x",))), f),
        lambda a, m, f: (replace(a, suite="t"), m, f),
        lambda a, m, f: (replace(a, sample=1), m, f),
        lambda a, m, f: (replace(a, prompt=Prompt.user("else")), m, f),
        lambda a, m, f: (replace(a, prompt=Prompt((Turn("assistant", a.prompt.turns[0].content),))), m, f),
        lambda a, m, f: (replace(a, item=replace(a.item, id="other")), m, f),
        lambda a, m, f: (replace(a, shift=replace(a.shift, version="2-A")), m, f),
        lambda a, m, f: (replace(a, shift=replace(a.shift, name="other")), m, f),
        lambda a, m, f: (a, Choices(), f),
    ],
)
def test_everything_that_a_cell_depends_on_is_in_its_key(change: Any) -> None:
    (one,) = ask(ITEMS[:1], suite="s", shifts=[PLAIN])
    base = cell_key(one, measurement=CompletionOf(GENERATION), model="f0")
    asked, measurement, model = change(one, CompletionOf(GENERATION), "f0")
    assert cell_key(asked, measurement=measurement, model=model) != base
    assert cell_key(one, measurement=CompletionOf(GENERATION), model="f0") == base


def test_what_a_measurement_reads_is_in_its_key() -> None:
    class Reads(CompletionOf):
        pass

    reads = Reads(GENERATION, name="verdict", needs=("completion",))
    (one,) = ask(ITEMS[:1], suite="s", shifts=[PLAIN])
    keys = {
        cell_key(one.measured("completion", value), measurement=reads, model="f")
        for value in ({"text": "a"}, {"text": "b"}, Missing("down"))
    }
    assert len(keys) == 3


def test_a_shift_that_fails_is_missing_and_never_the_plain_prompt(tmp_path: Path) -> None:
    backend = Fake()
    found = engine(backend, tmp_path / "c.jsonl").run(
        ask(ITEMS, suite="s", shifts=[BROKEN]), measurements=[CompletionOf(GENERATION)]
    )
    assert backend.asked == [] and {v.reason for v in values(found)} == {"llm_failed"}
    assert not (tmp_path / "c.jsonl").exists(), "asked again next time: nothing is kept"


def test_an_outage_is_missing_now_and_asked_again_later(tmp_path: Path) -> None:
    asked, path = ask(ITEMS, suite="s", shifts=[PLAIN]), tmp_path / "c.jsonl"
    down = engine(Fake(fail="http_500"), path).run(asked, measurements=[CompletionOf(GENERATION)])
    assert [v.reason for v in values(down)] == ["http_500"] * 7
    up = Fake()
    found = engine(up, path).run(asked, measurements=[CompletionOf(GENERATION)])
    assert len(up.asked) == 7 and all("text" in v for v in values(found))


def test_what_reads_a_missing_value_is_missing_for_the_same_reason(tmp_path: Path) -> None:
    class Length(CompletionOf):
        def measure(self, cells: Sequence[Cell], *, backend: Any) -> list[Any]:
            return [{"length": len(cell.response())} for cell in cells]

    length = Length(GENERATION, name="length", needs=("completion",))
    found = engine(Fake(fail="timeout"), tmp_path / "c.jsonl").run(
        ask(ITEMS[:2], suite="s", shifts=[PLAIN]), measurements=[CompletionOf(GENERATION), length]
    )
    assert [v.reason for v in values(found, "length")] == ["timeout"] * 2
    good = engine(Fake(), tmp_path / "d.jsonl").run(
        ask(ITEMS[:1], suite="s", shifts=[LOUD]), measurements=[CompletionOf(GENERATION), length]
    )
    assert values(good, "length") == [{"length": len("you said question 0 ")}]


def test_a_response_is_decoded_and_an_empty_one_is_missing() -> None:
    cell = Cell("s", ITEMS[0], LOUD, 0, Prompt.user("x"), {"completion": {"text": "SURE"}})
    assert cell.response() == "sure"
    for text in ("", " \n"):
        empty = cell.measured("completion", {"text": text}).response()
        assert isinstance(empty, Missing) and empty.reason == "empty_completion"


def test_comprehension_asks_the_shifts_own_harmless_question(tmp_path: Path) -> None:
    backend = Fake()
    found = engine(backend, tmp_path / "c.jsonl").run(
        ask(ITEMS[:2], suite="s", shifts=[LOUD, PLAIN]), measurements=[Comprehension(GENERATION)]
    )
    got = values(found, "comprehension")
    assert [v["read"] for v in got[:2]] == [True, True] and {t for t, _ in backend.asked} == {"SAY TEA"}
    assert [v.reason for v in got[2:]] == ["no_probe"] * 2


def test_a_kind_of_suites_brings_a_rule_of_its_own(tmp_path: Path) -> None:
    """The rule reads the decoded response; its version is in the key; most kinds have none."""
    kind = Kind(
        "words", {"length": True}, ("completion",), score=lambda item, text: {"length": len(text), "id": item.id}
    )
    made = [CompletionOf(GENERATION), *own_measurements(kind, made=kind.measures)]
    cells = engine(Fake(), tmp_path / "c.jsonl").run(ask(ITEMS[:1], suite="s", shifts=[LOUD]), measurements=made)
    assert values(cells, "score") == [{"length": len("you said question 0 "), "id": "i0"}]
    gone = engine(Fake(fail="timeout"), tmp_path / "d.jsonl").run(cells[:1], measurements=made[:1])
    assert own_measurements(kind, made=("margin",)) == [] == own_measurements(SAFETY, made=SAFETY.measures)
    newer = own_measurements(replace(kind, score_version=2), made=kind.measures)[0]
    assert cell_key(cells[0], measurement=newer, model="f0") != cell_key(cells[0], measurement=made[1], model="f0")
    assert values(gone)[0].reason == "timeout"


def test_choices_by_hand(tmp_path: Path) -> None:
    item = Item("q", "which?", choices=("aa", "bbbb", "c"), target=2)
    found = engine(Fake(), tmp_path / "c.jsonl").run(
        ask([item, ITEMS[0]], suite="s", shifts=[PLAIN]), measurements=[Choices()]
    )
    value, none = values(found, "choices")
    assert value["logprobs"] == [-3.0, -5.0, -2.0] and value["chosen"] == 2 and value["correct"] is True
    assert value["confidence"] == pytest.approx(1 / (1 + 2.718281828**-1 + 2.718281828**-3))
    assert value["correct_norm"] is False, "all are -1 a byte: the first, which is not the target"
    assert none.reason == "no_choices"


def test_the_refusal_margin_is_positive_where_refusing_is_likelier(tmp_path: Path) -> None:
    margin = RefusalMargin(refusals=(" N", " No"), affirmations=(" Yes",))
    found = engine(Fake(), tmp_path / "c.jsonl").run(ask(ITEMS[:1], suite="s", shifts=[PLAIN]), measurements=[margin])
    (value,) = values(found, "refusal_margin")
    import math

    assert value["margin"] == pytest.approx(math.log(math.exp(-2) + math.exp(-3)) - (-4.0))


def test_samples_have_their_own_seeds_and_turns_stay_in_front(tmp_path: Path) -> None:
    backend = Fake()
    talk = replace(ITEMS[0], before=(Turn("user", "hi"), Turn("assistant", "hello")))
    system = Shift("sys", "persona", "competing", lambda text, rng: Prompt.user(text, system="be", prefill="Sure"))
    asked = ask([talk], suite="s", shifts=[system], samples=3)
    assert [t.role for t in asked[0].prompt.turns] == ["system", "user", "assistant", "user", "assistant"]
    engine(backend, tmp_path / "c.jsonl").run(asked, measurements=[CompletionOf(GENERATION)])
    assert len({seed for _, seed in backend.asked}) == 3


def test_seeds_and_keys_are_stable_across_versions() -> None:
    assert digest("a", 1, [None]) == digest("a", 1, [None]) != digest("a", 1, [])
    assert seed_of("s", "i", "t", 0) == 4633835150605176097
    assert 0 <= seed_of("x") < 2**63
    assert Random(seed_of("shift", "s", "i0", "noise", 0)).random() == pytest.approx(0.4627578, abs=1e-6)


def test_a_damaged_store_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    engine(Fake(), path).run(ask(ITEMS, suite="s", shifts=[PLAIN]), measurements=[CompletionOf(GENERATION)])
    lines = path.read_bytes().splitlines()
    deep = b'{"key":' + b"[" * 10**5
    bad_key = lines[0].replace(b'"key":"', b'"key":["').replace(b'","model"', b'"],"model"', 1)
    no_value = lines[0].replace(b'"value"', b'"valu"')
    for bad in (b"[1]", b'{"key":"k"}', no_value, b"{", b"\xff\xfe", deep, bad_key):
        path.write_bytes(b"\n".join([lines[0], bad, *lines[2:]]) + b"\n")
        with pytest.raises(UserError, match=r"c\.jsonl:2: ") as caught:
            CellStore(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_foreign_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_text("a note without a last newline")
    with pytest.raises(UserError, match=r"cells\.jsonl:1: not a line of a cell store"):
        CellStore(path)
    assert path.read_text() == "a note without a last newline"


def test_only_one_process_writes_a_store(tmp_path: Path) -> None:
    with locked(tmp_path / "c.jsonl"):
        second = locked(tmp_path / "c.jsonl")
        with pytest.raises(UserError, match="another evaluation"):
            second.__enter__()
    with locked(tmp_path / "c.jsonl"):
        pass


def test_a_value_is_written_and_read_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    nasty = "a\u2028b\u0085c\n</script>\ud7ff\U0010ffff"
    (one,) = ask(ITEMS[:1], suite="s", shifts=[PLAIN])
    given = {"k1": {"text": nasty, "x": [1.5, None]}, "k2": Missing("context", "too long", lasting=True)}
    cells = {key: one.measured("completion", value) for key, value in given.items()}
    CellStore(path).add(cells, measurement="completion", model="m")
    assert CellStore(path).values == given
    with pytest.raises(ValueError):
        bad = {"k3": one.measured("completion", {"x": float("nan")})}
        CellStore(path).add(bad, measurement="completion", model="m")
    row = json.loads(path.read_text().split("\n")[0])
    assert list(row) == ["key", "model", "suite", "item", "shift", "sample", "measurement", "value"]
    assert row["item"] == "i0" and row["model"] == "m" and row["measurement"] == "completion"


def test_half_a_surrogate_pair_is_missing_and_the_store_stays_readable(tmp_path: Path) -> None:
    class Broken(Fake):
        def generate(self, prompts: Sequence[Prompt], *, config: Generation, seeds: Sequence[int]) -> list[Any]:
            return [Completion("\ud800" if "question 0" in p.turns[0].content else "fine", 1, True) for p in prompts]

    path, cells = tmp_path / "c.jsonl", ask(ITEMS[:2], suite="s", shifts=[PLAIN])
    broken, fine = values(engine(Broken(), path).run(cells, measurements=[CompletionOf(GENERATION)]))
    assert broken.reason == "unencodable" and fine["text"] == "fine"
    with path.open("a") as file:  # as an earlier version stored it
        file.write(path.read_text().replace("fine", "\\ud800").replace('"key":"', '"key":"x'))
    assert list(CellStore(path).values.values()) == [fine]


def test_keys_of_cells_are_those_of_published_stores(tmp_path: Path) -> None:
    """Written down: a change of how keys are made is a change of SCHEMA, and of the numbers here."""
    (one,) = ask(ITEMS[:1], suite="s", shifts=[LOUD])
    key = cell_key(one, measurement=CompletionOf(GENERATION), model="f0")
    after = one.measured("completion", {"text": "a"})
    openings = (" I'm sorry", " I can't", " I cannot", " I won't", " Sorry", " No")
    others = (" Sure", " Yes", " Of course", " Here", " Okay", " You")  # of then: now without a space of their own
    margin = RefusalMargin(refusals=openings, affirmations=others, needs=("completion",))
    assert key == "4cbe422395e743c4a30836d6"
    assert cell_key(after, measurement=margin, model="f0") == "be119bc92a3851598b51d073"


def test_progress_tells_how_much_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evals.measure.engine import to_stderr

    work = Engine(Fake(), store=CellStore(tmp_path / "c.jsonl"), batch=4, progress=to_stderr)
    work.run(ask(ITEMS, suite="s", shifts=[PLAIN]), measurements=[CompletionOf(GENERATION)])
    shown = capsys.readouterr().err
    assert "completion: 4/7" in shown and "s left" in shown and "completion: 7/7" in shown


def test_an_asked_item_carries_everything(tmp_path: Path) -> None:
    (one,) = ask(ITEMS[:1], suite="s", shifts=[PLAIN])
    assert one == Cell("s", ITEMS[0], PLAIN, 0, Prompt.user("question 0 "))
