"""The API backend's keys and addresses: what may not be seen is in nothing that is produced or sent elsewhere."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from align.errors import UserError
from evals.backends.api_replies import Secret
from evals.backends.base import Completion
from evals.backends.openai_api import Endpoint, OpenAIBackend, OpenAIChat
from factories.api_backend import KEY, QUICK, ask, backend, echo, listing, reasons
from factories.fake_api import Reply, answer, failure, serving

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)


def test_the_key_is_in_nothing_that_is_produced(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that puts the key into every reply and error: not in a log (all at DEBUG), cell, repr or pickle."""
    replies = [
        answer(f"your key is {KEY}."), failure(500, message=f"key {KEY} failed"),
        failure(401, message=f"bad key {KEY}"), failure(404, message=f"{'x' * 180} {KEY}"),
        Reply({"choices": [{"finish_reason": KEY, "message": {"content": ""}}]}), Reply(f"not json {KEY}"),
    ]  # fmt: skip
    produced: list[Any] = []
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    with serving(lambda seen, n: replies[int(seen.last_turn)], models=listing(root=f"/x/{KEY}")) as api:
        model = backend(api, patience=replace(QUICK, max_retries=0))
        for i in range(len(replies)):
            produced += ask(model, str(i))
        produced += [model.fingerprint, repr(model), str(vars(model)), repr(OpenAIChat("m", endpoint=model.endpoint))]
        pickled = pickle.dumps(model)
        assert isinstance(ask(pickle.loads(pickled), "0")[0], Completion)  # the copy reads the key from the environment
    assert "[key]" in produced[0].text and "[key]" in produced[1].detail
    dumps = [pickled.decode("latin1"), pickle.dumps(produced).decode("latin1")]
    texts = [*map(repr, produced), caplog.text, *capfd.readouterr(), *dumps]
    assert not [text for text in texts if KEY in text or KEY[:12] in text]
    assert len(caplog.records) > 5  # something was logged, so its silence on the key means something


@pytest.mark.parametrize("value", ["", "two words", "sk-\u0101bc", "sk-a\nb"])
def test_a_key_that_cannot_be_one_is_told_without_showing_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match="MY_KEY") as caught:
        OpenAIBackend("m", endpoint=Endpoint(api_key_env="MY_KEY"))
    assert not value or value not in str(caught.value)
    assert caught.value.__cause__ is None


def test_white_space_around_the_key_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    with serving(echo) as api:
        assert reasons(ask(backend(api), "a")) == ["-"]
    assert {k.lower(): v for k, v in api.seen[0].headers.items()}["authorization"] == f"Bearer {KEY}"


def test_addresses_without_credentials_only() -> None:
    for url in (f"http://user:{KEY}@host/v1", f"http://host/v1?key={KEY}", f"http://host/{KEY}/v1"):
        with pytest.raises(UserError, match="base_url") as caught:
            OpenAIBackend("m", endpoint=Endpoint(url, "MY_KEY"))
        assert KEY not in str(caught.value)
    with pytest.raises(UserError, match="base_url"):
        Endpoint("localhost:8000/v1")
    with pytest.raises(UserError, match="token_limit"):
        Endpoint(token_limit="max")


def test_a_secret_does_not_travel() -> None:
    secret = Secret("a/b+c-key")
    assert secret.cut("x a/b+c-key y a%2Fb%2Bc-key") == "x [key] y [key]" and "a/b" not in f"{secret} {secret!r}"
    assert secret.line("m " * 300) == ("m " * 300)[:200] and secret.line(None) is None
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_a_server_without_keys_and_a_machine_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(echo) as api:
        model = OpenAIBackend("m", endpoint=Endpoint(api.url, None), patience=QUICK)
        assert reasons(ask(model, "a")) == ["-"]
    assert Counter(reasons(ask(model))) == Counter()
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(UserError, match=r"align-tradeoffs\[api\]"):
        OpenAIBackend("m", endpoint=Endpoint(api.url, None))
