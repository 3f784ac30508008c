"""Shifts from the command line, made by a model and kept on disk or from translations; and which key goes where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from align.errors import UserError
from evals.backends.base import Completion, Generation
from evals.backends.keys import named_for, read_keys, unsent, variable_for
from evals.backends.openai_api import Endpoint, OpenAIBackend, chat_of
from evals.items import Missing, Prompt
from evals.judges import make_judge
from evals.shifts.base import Shift
from evals.shifts.maker import BackendChat, Maker
from evals.shifts.requested import requested_shifts
from factories.fake_api import answer, failure, serving
from recipes.commands.suites import Options, note_unsent_keys

KEY = "sk-official-0123456789"


def config(**options: Any) -> Options:
    return Options(model="m", suite=("s",), **options)


def shifts_of(*names: str, out: Path, model: str | None = None) -> list[Shift]:
    return requested_shifts(names, model=model, keys={}, answers=out / "shifts.jsonl")


# --- made by a model -------------------------------------------------------------------------------------------------


class Chat:
    """Rewrites with a number that says how often it was asked; fails where it is told to."""

    def __init__(self, fingerprint: str = "c", *, fail: bool = False) -> None:
        self.fingerprint, self.fail, self.asked = fingerprint, fail, 0

    def __call__(self, instruction: str) -> str | Missing:
        self.asked += 1
        return Missing("http_500") if self.fail else f"answer {self.asked}\n\u2028 é"


def test_an_answer_is_asked_once_and_a_failure_again(tmp_path: Path) -> None:
    path = tmp_path / "shifts.jsonl"
    first = Chat()
    maker = Maker(first, path=path)
    assert maker("a") == maker("a") == "answer 1\n\u2028 é" and maker("b") == "answer 2\n\u2028 é" and first.asked == 2
    again = Chat()
    assert Maker(again, path=path)("a") == "answer 1\n\u2028 é"
    assert again.asked == 0, "a resumed run has the same prompts"
    other = Chat("another model")
    assert Maker(other, path=path)("a") == "answer 1\n\u2028 é" and other.asked == 1, "another model is asked itself"
    down = Maker(Chat(fail=True), path=path)
    assert isinstance(down("c"), Missing) and isinstance(down("c"), Missing) and down.chat.asked == 2  # type: ignore[attr-defined]
    with path.open("a") as file:
        file.write('{"key": "cut')  # what a kill leaves behind
    assert Maker(again, path=path)("a") == "answer 1\n\u2028 é"
    path.write_text("not json\n")
    with pytest.raises(UserError, match=r"shifts\.jsonl:1"):
        Maker(again, path=path)


def test_a_backend_as_the_maker_is_asked_greedily_and_a_cut_answer_is_missing() -> None:
    class Backend:
        fingerprint, name, can = "f", "b", frozenset[str]()

        def generate(self, prompts: Any, *, config: Any, seeds: Any) -> list[Any]:
            assert config.temperature == 0 and len(prompts) == 1
            text = prompts[0].turns[0].content
            return [Missing("context") if text == "long" else Completion(f"<{text}>", 2, text != "cut")]

    chat = BackendChat(Backend())  # type: ignore[arg-type]
    assert chat("x") == "<x>" and getattr(chat("cut"), "reason", "") == "llm_truncated"
    assert getattr(chat("long"), "reason", "") == "context" and chat.fingerprint == "f:512"


def test_shifts_made_over_an_api_reach_the_prompt_and_need_a_maker(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --shift-model"):
        shifts_of("translation_zulu", out=tmp_path)
    reply = answer(json.dumps({"text": "Ngicela itiye"}))
    with serving(lambda seen, n: reply) as api:
        found = shifts_of("translation_zulu", "base64", model=f"llm:m@{api.url}", out=tmp_path)
        assert [shift.name for shift in found] == ["none", "translation_zulu", "base64"]
        prompts = [found[1].encode("tea please", Random(0)) for _ in range(2)]
        assert len(api.seen) == 1 and "tea please" in api.seen[0].last_turn
    assert [p.turns[0].content for p in prompts if isinstance(p, Prompt)] == ["Ngicela itiye"] * 2
    with serving(lambda seen, n: reply) as api:  # the same model at another address is another one
        again = shifts_of("translation_zulu", model=f"llm:m@{api.url}", out=tmp_path)[1]
        again.encode("tea please", Random(0))
        assert len(api.seen) == 1


# --- files of translations -------------------------------------------------------------------------------------------


def test_files_of_translations_are_shifts(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    rows = [{"en": "tea", "prompt": "tea?", "de": "Tee", "fr": "thé"}, {"en": "rope", "prompt": "rope?", "de": "Seil"}]
    file = write_rows(tmp_path / "t.jsonl", rows)
    assert [s.name for s in shifts_of(str(file), out=tmp_path)] == ["none", "translated_de", "translated_fr"]
    (_, german) = shifts_of(f"{file}:de", out=tmp_path)
    prompt = german.encode("rope", Random(0))
    assert isinstance(prompt, Prompt) and prompt.turns[0].content == "Seil"
    (_, other) = shifts_of(f"{file}:original=prompt,de", out=tmp_path)
    assert isinstance(other.encode("rope?", Random(0)), Prompt)
    assert getattr(other.encode("rope", Random(0)), "reason", "") == "no_translation"
    with pytest.raises(UserError, match="no column 'it'"):
        shifts_of(f"{file}:it", out=tmp_path)
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        shifts_of(str(tmp_path / "absent.jsonl"), out=tmp_path)


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "variable"),
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY"), ("https://api.openai.com:443/v1", "OPENAI_API_KEY"),
        ("http://api.openai.com/v1", None), ("https://api.openai.com.evil.example/v1", None),
        ("https://evil.example/api.openai.com/v1", None), ("http://localhost:8000/v1", None),
        ("https://api.openai.com:8443/v1", None),
    ],
)  # fmt: skip
def test_the_usual_key_goes_to_its_own_host_only(address: str, variable: str | None) -> None:
    assert variable_for(address) == variable == Endpoint(address).key_variable
    assert variable_for(address, named="MY_KEY") == "MY_KEY" and variable_for(address, named=None) is None


def test_no_key_reaches_another_host_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MY_KEY", "sk-mine-0123456789")
    with serving(lambda seen, n: answer("hi")) as api:
        host = api.url.removeprefix("http://").removesuffix("/v1")
        chat_of(f"m@{api.url}")("x")
        OpenAIBackend("m", base_url=api.url).generate([Prompt.user("x")], config=Generation(8), seeds=[0])
        chat_of(f"m@{api.url}", keys={host: "MY_KEY"})("x")
        chat_of(f"m@{api.url}", keys={"elsewhere:1": "OPENAI_API_KEY"})("x")
        judge: Any = make_judge(f"llm:m@{api.url}", keys={host: "MY_KEY"})
        judge.chat("x")
        sent = [{k.lower(): v for k, v in seen.headers.items()}["authorization"] for seen in api.seen]
    assert KEY not in str([seen.headers for seen in api.seen])
    none, mine = "Bearer none", "Bearer sk-mine-0123456789"
    assert sent == [none, none, mine, none, mine]


def test_a_server_that_wants_a_key_and_got_none_says_how_to_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-mine-0123456789")
    with serving(lambda seen, n: failure(401)) as api:
        host = api.url.removeprefix("http://").removesuffix("/v1")
        refused = [chat_of(f"m@{api.url}", keys=keys)("x") for keys in ({}, {host: "MY_KEY"})]
    details = [found.detail for found in refused if isinstance(found, Missing)]
    assert "--api-key-env HOST=VARIABLE" in details[0] and "refuses the key" in details[1]


def test_what_is_not_sent_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked = config(api="http://localhost:8000/v1", judge=("rules", "llm:m@http://localhost:8000/v1"))
    note_unsent_keys(asked)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "OPENAI_API_KEY is not sent to localhost:8000" in said and KEY not in said
    note_unsent_keys(config(api="http://localhost:8000/v1", api_key_env=("localhost:8000=MY_KEY",)))
    note_unsent_keys(config(api="https://api.openai.com/v1"))
    assert capsys.readouterr().err == ""
    assert unsent("http://localhost/v1", {}, environment={}) is None


def test_keys_are_named_by_host() -> None:
    assert read_keys(["localhost:8000=MY_KEY", "h=B"]) == {"localhost:8000": "MY_KEY", "h": "B"}
    assert named_for("http://localhost:8000/v1", {"localhost:8000": "MY_KEY"}) == "MY_KEY"
    for wrong in ("MY_KEY", "h=", "=K", "http://h/v1=K", "h=sk-live-key"):
        with pytest.raises(UserError, match="HOST=VARIABLE") as caught:
            read_keys([wrong])
        assert "sk-live" not in str(caught.value)
    with pytest.raises(UserError, match="twice"):
        read_keys(["h=A", "h=B"])
