"""Whatever a server answers, and wherever it sends: no reply ends a run, and nothing leaves the host that was named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from evals.backends.base import Completion, Generation
from evals.backends.openai_api import Endpoint, OpenAIBackend, chat_of
from evals.backends.retries import Patience
from evals.items import Item, Missing, Prompt
from evals.judges import make_judge
from evals.measure.cells import ask
from evals.measure.engine import Engine
from evals.measure.measurements import CompletionOf
from evals.measure.store import CellStore
from evals.shifts import parse_shifts
from factories.fake_api import FakeAPI, Reply, answer, serving

pytest.importorskip("openai")
QUICK = Patience(max_retries=0, first_wait=0.01, longest_wait=0.02, attempt_seconds=5, total_seconds=10)
CHOICES = '{"choices": [{"finish_reason": "stop", "message": {"content": "x", "extra": %s}}]'
WHOLE = CHOICES + ', "usage": {"completion_tokens": %s}}'
MALFORMED = {
    "deep brackets": Reply(WHOLE % ("[" * 100_000, 1)), "thousands of digits": Reply(WHOLE % ("9" * 5_000, 1)),
}  # fmt: skip
READ = {  # what is read of it: text and tokens
    "half a surrogate pair": (Reply(WHOLE.replace('"x"', '"a\\ud800b"') % (0, 1)), ("a\ufffdb", 1)),
    "a huge count of tokens": (Reply(WHOLE % (0, "9" * 4_000)), ("x", None)),
    "a negative count of tokens": (Reply(WHOLE % (0, -3)), ("x", None)),
}


def backend(api: FakeAPI) -> OpenAIBackend:
    return OpenAIBackend("m", endpoint=Endpoint(api.url, None, describe=False), patience=QUICK)


def measured(reply: Reply, path: Path) -> list[Any]:
    """What two cells are worth of which one gets this reply; the store is then read again."""
    cells = ask([Item("a", "odd"), Item("b", "plain")], suite="s", shifts=parse_shifts(["none"]))
    with serving(lambda seen, n: reply if seen.last_turn == "odd" else answer("fine")) as api:
        found = Engine(backend(api), store=CellStore(path)).run(cells, measurements=[CompletionOf(Generation(8))])
    values = [cell.value("completion") for cell in found]
    lasting = [value for value in values if not isinstance(value, Missing)]
    assert sorted(map(str, CellStore(path).values.values())) == sorted(map(str, lasting))
    return values


@pytest.mark.parametrize("what", MALFORMED)
def test_a_reply_that_no_reader_takes_is_one_missing_cell(what: str, tmp_path: Path) -> None:
    odd, fine = measured(MALFORMED[what], tmp_path / "cells.jsonl")
    assert isinstance(odd, Missing) and odd.reason == "malformed" and fine["text"] == "fine"


@pytest.mark.parametrize("what", READ)
def test_an_odd_reply_is_read_as_far_as_it_goes(what: str, tmp_path: Path) -> None:
    reply, expected = READ[what]
    odd, fine = measured(reply, tmp_path / "cells.jsonl")
    assert (odd["text"], odd["tokens"]) == expected and fine["text"] == "fine"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with serving(lambda seen, n: answer("mine")) as other:
        with serving(lambda seen, n: Reply("", status, {"Location": f"{other.url}/chat/completions"})) as named:
            (found,) = backend(named).generate([Prompt.user("secret")], config=Generation(8), seeds=[0])
        assert isinstance(found, Missing) and found.reason == f"http_{status}" and "another address" in found.detail
        assert other.seen == []


def test_openais_ids_go_to_no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-mine")
    with serving(lambda seen, n: answer("fine")) as api:
        (found,) = backend(api).generate([Prompt.user("x")], config=Generation(8), seeds=[0])
    assert isinstance(found, Completion) and not any("mine" in str(value) for value in api.seen[0].headers.values())


@pytest.mark.parametrize("spec", ["m@localhost:8000/v1", "m@127.0.0.1", "org/m@host/v1"])
def test_an_address_without_its_scheme_is_no_name_for_openais_host(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    for make in (chat_of, lambda spec: make_judge([f"llm:{spec}"])):
        with pytest.raises(UserError, match="begins with http:// or https://; write llm:MODEL@http://HOST/v1"):
            make(spec)
    assert chat_of("@cf/meta/m@http://localhost:8000/v1").backend.endpoint.host == "localhost:8000"


LISTS = ['["a", ' + "[" * 20_000, '["a", ' + "9" * 5_000 + "]", "[" * 50_000]
NASTY = ["", "\ud800", *LISTS, '{"response": "' + "\\" * 3, "\x00" * 9]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_no_shift_raises_on_what_a_model_answers(text: str) -> None:
    shifts: list[Any] = parse_shifts(["all"])
    assert len(shifts) > 50
    for shift in shifts:
        assert isinstance(shift.decode(text), str), shift.name
