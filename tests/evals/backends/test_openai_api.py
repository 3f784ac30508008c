"""The API backend against a local server that speaks the protocol: replies, failures, waits, order."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from align.turns import Turn
from evals.backends.api_replies import asked_wait
from evals.backends.base import Backend, Completion, Generation
from evals.backends.openai_api import Endpoint, OpenAIBackend, OpenAIChat
from evals.backends.retries import Patience
from evals.items import Missing, Prompt
from factories.api_backend import KEY, QUICK, ask, backend, echo, listing, reasons
from factories.fake_api import Reply, Script, Seen, answer, failure, serving

pytest.importorskip("openai")

@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)


# --- what is sent and read -------------------------------------------------------------------------------------------


def test_it_is_a_backend_and_sends_the_protocol() -> None:
    prompt = Prompt((Turn("system", "be brief"), Turn("user", "hi")))
    with serving(echo) as api:
        model = backend(api, extra_body={"top_k": 5})
        assert isinstance(model, Backend) and model.can == {"system"}
        config = Generation(7, temperature=0.5, stop=("##",))
        (found,) = model.generate([prompt], config=config, seeds=[2**62 + 9])
        (greedy,) = ask(model, "hi")
    assert isinstance(found, Completion) and (found.text, found.tokens, found.finished) == ("you said hi", 3, True)
    assert (found.system_fingerprint, found.model) == ("fp_7", "served-model")  # type: ignore[attr-defined]
    first, second = (seen.body for seen in api.seen)
    assert first == {
        "model": "m", "max_tokens": 7, "temperature": 0.5, "seed": 9, "stop": ["##"], "top_k": 5,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
    }  # fmt: skip
    assert second["temperature"] == 0 and "seed" not in second and "stop" not in second
    assert api.seen[0].path == "/v1/chat/completions"
    assert {k.lower(): v for k, v in api.seen[0].headers.items()}["authorization"] == f"Bearer {KEY}"


def test_the_limit_of_newer_models_has_another_name() -> None:
    with serving(echo) as api:
        ask(backend(api, token_limit="max_completion_tokens"), "a")
    assert api.seen[0].body["max_completion_tokens"] == 8 and "max_tokens" not in api.seen[0].body


def test_a_cut_answer_says_so_and_a_refusal_field_is_text() -> None:
    replies = [answer("abc", finish="length"), answer(None, refusal="I can't help with that.")]
    with serving(lambda seen, n: replies[n]) as api:
        model = backend(api)
        (cut,), (refusal,) = ask(model, "a"), ask(model, "b")
    assert cut == replace(cut, text="abc", finished=False)  # type: ignore[type-var]
    assert isinstance(refusal, Completion) and refusal.text == "I can't help with that."


def test_prefill_only_where_it_is_set_up() -> None:
    prompt = Prompt.user("go", prefill="Sure")
    with serving(echo) as api:
        (plain,) = backend(api).generate([prompt], config=Generation(), seeds=[0])
        assert plain == Missing("unsupported_prefill", "m is not set up for it") and not api.seen
        (found,) = backend(api, prefill=True).generate([prompt], config=Generation(), seeds=[0])
    body = api.seen[0].body
    assert isinstance(found, Completion)
    assert body["messages"][-1] == {"role": "assistant", "content": "Sure"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_no_system_turn_for_a_model_without_one_and_the_others_are_still_asked() -> None:
    prompts = [Prompt.user("a", system="s"), Prompt.user("b")]
    with serving(echo) as api:
        found = backend(api, system=False).generate(prompts, config=Generation(), seeds=[0, 0])
    assert reasons(found) == ["unsupported_system", "-"] and len(api.seen) == 1


def test_usage_or_a_counter_of_ours() -> None:
    with serving(lambda seen, n: answer("one two", tokens=None)) as api:
        (uncounted,) = ask(backend(api), "a")
        assert isinstance(uncounted, Completion) and (uncounted.text, uncounted.tokens) == ("one two", None)
        (found,) = ask(backend(api, count_tokens=lambda text: len(text.split())), "a")
        assert isinstance(found, Completion) and found.tokens == 2
        assert OpenAIChat("m", endpoint=Endpoint(api.url, "MY_KEY"), patience=QUICK)("a") == "one two"


# What OpenAI says to models that want other parameters, and the same without its fields.
REFUSALS = {
    "max_tokens": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
        "instead.", "param": "max_tokens", "code": "unsupported_parameter",
    },
    "temperature": {"message": "`temperature` is not supported by this model"},
    "seed": {"message": "Unsupported value: 'seed'", "param": "seed", "code": "unsupported_value"},
}  # fmt: skip


def test_parameters_that_a_server_does_not_support_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is refused once; later requests go without it. What a refusal means for the answers is said once."""

    def choosy(seen: Seen, n: int) -> Reply:
        wrong = next((name for name in REFUSALS if name in seen.body), None)
        return answer("ok") if wrong is None else Reply({"error": REFUSALS[wrong]}, 400)

    with serving(choosy) as api:
        model = backend(api, patience=replace(QUICK, max_concurrency=1))
        found = ask(model, "a", "b", config=Generation(8, temperature=0.7))
    assert [value.text for value in found if isinstance(value, Completion)] == ["ok", "ok"] and len(api.seen) == 5
    assert api.seen[-1].body["max_completion_tokens"] == 8
    assert not {"max_tokens", "temperature", "seed"} & set(api.seen[-1].body)
    said = capsys.readouterr().err
    assert said.count("takes no temperature") == said.count("takes no seed") == 1 and "max_tokens" not in said


def test_a_parameter_that_cannot_be_left_out_is_a_failure_with_the_servers_words() -> None:
    stop = {"message": "Unsupported parameter: 'stop' is not supported with this model.", "param": "stop"}
    limit = {"message": "max_tokens is too large: 8, at most 4 are supported", "param": "max_tokens"}
    for refusal in (stop, limit):
        with serving(lambda seen, n, refusal=refusal: Reply({"error": refusal}, 400)) as api:
            (found,) = ask(backend(api), "a", config=Generation(8, stop=("#",)))
        assert found == Missing("http_400", refusal["message"]) and len(api.seen) == 1
    with serving(lambda seen, n: Reply({"detail": "no route; did you mean /v1?"}, 404)) as api:
        assert ask(backend(api), "a") == [Missing("http_404", "no route; did you mean /v1?")]


def test_half_an_emoji_in_a_reply_is_a_replacement_character() -> None:
    with serving(lambda seen, n: answer("no \ud83d", finish="length")) as api:
        (found,) = ask(backend(api), "a")
    assert isinstance(found, Completion) and found.text == "no \ufffd" and not found.finished


def test_addresses_of_one_host_with_other_paths_are_other_models() -> None:
    addresses = ["http://h:1/safe/v1", "http://h:1/tuned/v1", "http://h:1/v1", "http://h:1/v1/"]
    prints = [OpenAIBackend("m", endpoint=Endpoint(a, None, describe=False)).fingerprint for a in addresses]
    assert len(set(prints)) == 3 and prints[2] == prints[3]


# --- failures --------------------------------------------------------------------------------------------------------

FAILURES: list[tuple[Reply, str, int]] = [
    (failure(400), "http_400", 1),
    (failure(400, code="context_length_exceeded"), "context", 1),
    (failure(400, message="This model's maximum context length is 10 tokens"), "context", 1),
    (failure(401), "http_401", 1),
    (failure(403), "http_403", 1),
    (failure(404), "http_404", 1),
    (failure(429), "http_429", 3),
    (failure(429, code="insufficient_quota"), "http_429", 1),
    (failure(500), "http_500", 3),
    (failure(503), "http_503", 3),
    (Reply({}, hang_up=True), "connection", 3),
    (Reply({"id": "x"}), "malformed", 1),
    (Reply({"choices": []}), "malformed", 1),
    (Reply({"choices": [{"finish_reason": "stop"}]}), "malformed", 1),
    (Reply("no json at all"), "malformed", 1),
    (Reply("<html>", headers={"Content-Type": "text/html"}), "malformed", 1),
    (Reply('["a list"]'), "malformed", 1),
    (answer(None), "malformed", 1),
    (answer(["parts"]), "malformed", 1),
    (answer("half", finish="content_filter"), "content_filter", 1),
]


def test_an_empty_answer_is_what_the_model_did_and_no_failure() -> None:
    with serving(lambda seen, n: answer("")) as api:
        (found,) = ask(backend(api), "a")
    assert not isinstance(found, Missing) and found.text == ""


@pytest.mark.parametrize(("reply", "reason", "tries"), FAILURES, ids=[f"{i}-{f[1]}" for i, f in enumerate(FAILURES)])
def test_each_failure_is_missing_with_its_reason_after_its_tries(reply: Reply, reason: str, tries: int) -> None:
    with serving(lambda seen, n: reply) as api:
        (found,) = ask(backend(api), "a")
    assert isinstance(found, Missing) and found.reason == reason
    assert len(api.seen) == tries
    assert found.lasting == (reason == "context")


def test_a_failure_that_passes_is_a_completion() -> None:
    with serving(lambda seen, n: failure(500) if n < 2 else answer("at last")) as api:
        (found,) = ask(backend(api), "a")
    assert isinstance(found, Completion) and found.text == "at last" and len(api.seen) == 3


def test_no_server_at_all() -> None:
    with serving(echo) as api:
        model = backend(api)
    assert reasons(ask(model, "a", "b")) == ["connection", "connection"]


def test_one_refused_key_ends_the_batch() -> None:
    patience = replace(QUICK, max_concurrency=1)
    with serving(lambda seen, n: answer("ok") if n < 2 else failure(401)) as api:
        found = ask(backend(api, patience=patience), *"abcdef")
        assert reasons(found) == ["-", "-", *["http_401"] * 4] and len(api.seen) == 3
        assert not any(value.lasting for value in found if isinstance(value, Missing))
        ask(backend(api, patience=patience), "g")  # a later batch asks again
    assert len(api.seen) == 4


def test_a_refused_key_wakes_those_who_wait_for_a_retry() -> None:
    patience = Patience(first_wait=20, longest_wait=20, attempt_seconds=5, total_seconds=60, max_concurrency=2)

    def script(seen: Seen, n: int) -> Reply:
        return replace(failure(401), delay=0.2) if seen.last_turn == "b" else failure(500)

    start = time.monotonic()
    with serving(script) as api:
        found = ask(backend(api, patience=patience), "a", "b")
    assert reasons(found) == ["http_401", "http_401"] and time.monotonic() - start < 5


def test_a_lone_surrogate_is_one_missing_entry() -> None:
    with serving(echo) as api:
        assert reasons(ask(backend(api), "a", "\ud800", "b")) == ["-", "unencodable", "-"]


def test_a_bug_is_raised_not_counted() -> None:
    def broken(text: str) -> int:
        raise RuntimeError("a bug")

    with serving(lambda seen, n: answer("x", tokens=None)) as api, pytest.raises(RuntimeError, match="a bug"):
        ask(backend(api, count_tokens=broken), "a")


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_silent_server_times_out_after_its_retries() -> None:
    patience = replace(QUICK, max_retries=1, attempt_seconds=0.1)
    with serving(lambda seen, n: replace(answer("late"), delay=0.5)) as api:
        (found,) = ask(backend(api, patience=patience), "a")
    assert reasons([found]) == ["timeout"] and len(api.seen) == 2


def test_the_total_time_holds_against_a_reply_that_drips() -> None:
    """Each byte comes in time, so no timeout of the connection fires: only the limit over all ends it."""
    patience = replace(QUICK, attempt_seconds=0.5, total_seconds=0.4)
    with serving(lambda seen, n: replace(answer("x"), drip=0.05)) as api:
        start = time.monotonic()
        (found,) = ask(backend(api, patience=patience), "a")
        assert reasons([found]) == ["timeout"] and 0.3 < time.monotonic() - start < 3  # the whole reply takes 15 s


def test_retry_after_is_waited_for_and_too_long_a_wait_gives_up_at_once() -> None:
    with serving(lambda seen, n: failure(429, retry_after="0.4") if n == 0 else answer("ok")) as api:
        (found,) = ask(backend(api), "a")
        assert isinstance(found, Completion)
        assert 0.35 < api.seen[1].at - api.seen[0].at < 2.0  # the backoff alone would be at most 0.02 s
    with serving(lambda seen, n: failure(429, retry_after="1000")) as api:
        start = time.monotonic()
        model = backend(api)
        assert reasons(ask(model, "a")) == ["http_429"] and reasons(ask(model, "b")) == ["http_429"]
        assert time.monotonic() - start < 2 and len(api.seen) == 1  # the second is not even sent: the wait is not over


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0), ({"retry-after-ms": "250", "retry-after": "9"}, 0.25), ({}, None),
        ({"retry-after": "-1"}, None), ({"retry-after": "nan"}, None), ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
    ],
)  # fmt: skip
def test_the_wait_a_server_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait(headers, now=60.0) == seconds


def test_retries_are_paced_too_and_the_rate_limit_holds_on_the_wire() -> None:
    patience = replace(QUICK, per_minute=600, max_concurrency=4)
    with serving(lambda seen, n: failure(500) if n % 2 else answer("ok")) as api:
        ask(backend(api, patience=patience), *"abcdef")
    times = sorted(seen.at for seen in api.seen)
    # A busy machine may see the first call late, never the whole row closer: unpaced retries take half of its time.
    assert len(times) > 6 and times[-1] - times[0] > 0.75 * 0.1 * (len(times) - 1)


# --- concurrency -----------------------------------------------------------------------------------------------------


def test_many_at_once_in_the_order_asked() -> None:
    texts = [f"t{i}" for i in range(24)]

    def script(seen: Seen, n: int) -> Reply:
        return replace(echo(seen, n), delay=0.08 if n % 3 == 0 else 0.01)

    with serving(script) as api:
        found = ask(backend(api, patience=replace(QUICK, max_concurrency=6)), *texts)
    assert [value.text for value in found if isinstance(value, Completion)] == [f"you said {text}" for text in texts]
    assert 2 <= api.most_at_once <= 6


# --- log-probabilities -----------------------------------------------------------------------------------------------


def legacy(tokens: list[str], values: list[float | None], *, generated: str = "!") -> Script:
    def script(seen: Seen, n: int) -> Reply:
        listed = [*tokens, generated]
        offsets = [len("".join(listed[:i])) for i in range(len(listed))]
        logprobs = {"tokens": listed, "text_offset": offsets, "token_logprobs": [*values, -9.0], "top_logprobs": None}
        return Reply({"choices": [{"index": 0, "text": "".join(listed), "logprobs": logprobs}]})

    return script


def test_continuations_are_summed_over_their_own_tokens_only() -> None:
    with serving(legacy(["ab", "c", " d", "e"], [None, -1.0, -0.25, -0.5])) as api:
        model = backend(api, logprobs=True)
        assert model.can == {"system", "logprobs"}
        found = model.continuation_logprobs([Prompt.user("abc")], continuations=[" de"])
        spans = model.continuation_logprobs([Prompt.user("abc ")], continuations=["de"])
    assert found == [(-0.75, 2)] and reasons(spans) == ["token_boundary"]
    assert api.seen[0].path == "/v1/completions"
    body = api.seen[0].body
    assert (body["prompt"], body["echo"], body["logprobs"], body["temperature"]) == ("abc de", True, 1, 0.0)


def test_log_probabilities_that_cannot_be_had_are_missing() -> None:
    two_turns = Prompt((Turn("system", "s"), Turn("user", "a")))
    with serving(legacy(["x", "y"], [None, -1.0])) as api:
        unset = backend(api).continuation_logprobs([Prompt.user("x")], continuations=["y"])
        assert reasons(unset) == ["unsupported_logprobs"]
        model = backend(api, logprobs=True)
        assert reasons(model.continuation_logprobs([two_turns], continuations=["y"])) == ["unsupported_logprobs"]
        assert not api.seen
        other = model.continuation_logprobs([Prompt.user("q")], continuations=["y"])  # the server echoes something else
        assert reasons(other) == ["malformed"]
        rendered = backend(api, logprobs=True, render=lambda prompt: "x")
        assert rendered.continuation_logprobs([two_turns], continuations=["y"]) == [(-1.0, 1)]
    with serving(legacy(["x", "y"], [None, None])) as api:
        found = backend(api, logprobs=True).continuation_logprobs([Prompt.user("x")], continuations=["y"])
        assert reasons(found) == ["malformed"]
    with serving(lambda seen, n: Reply({"choices": [{"index": 0, "text": "xy", "logprobs": None}]})) as api:
        found = backend(api, logprobs=True).continuation_logprobs([Prompt.user("x")], continuations=["y"])
        assert reasons(found) == ["malformed"]


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_fingerprints_say_that_weights_are_unseen_and_follow_what_the_server_says() -> None:
    with serving(echo, models=listing(root="/models/a")) as api:
        first = backend(api).fingerprint
        assert first == backend(api).fingerprint
        assert "weights-unseen" in first and f"127.0.0.1:{api.server.server_address[1]}:m:" in first
        api.models = listing(root="/models/a", created=6)  # some servers give the time of the question
        assert backend(api).fingerprint == first
        different = [
            backend(api, extra_body={"top_k": 1}).fingerprint, backend(api, describe=False).fingerprint,
            backend(api, render=lambda prompt: "x").fingerprint, backend(api, render=lambda prompt: "y").fingerprint,
        ]  # fmt: skip
        api.models = listing(root="/models/b")
        different.append(backend(api).fingerprint)
        assert len({first, *different}) == 6
        undescribed = backend(api, describe=False).fingerprint
        api.models = None  # this server lists nothing
        assert backend(api).fingerprint == undescribed
        other = OpenAIBackend("n", endpoint=Endpoint(api.url, "MY_KEY", describe=False))
        assert other.fingerprint.split(":")[:3] == first.split(":")[:3] and other.fingerprint != undescribed


def test_a_chat_keeps_its_fingerprint_while_its_server_is_away() -> None:
    with serving(echo, models=listing()) as api:
        chat = OpenAIChat("m", endpoint=Endpoint(api.url, "MY_KEY"), patience=QUICK)
        there = OpenAIChat("m", endpoint=Endpoint(api.url, "MY_KEY"), patience=QUICK).fingerprint
    assert chat.fingerprint == there
    assert OpenAIChat("m", endpoint=Endpoint(api.url, "MY_KEY"), max_new_tokens=3).fingerprint != there


def test_a_chat_answers_greedily_and_a_cut_answer_is_missing() -> None:
    with serving(lambda seen, n: answer("half", finish="length") if seen.last_turn == "b" else echo(seen, n)) as api:
        chat = OpenAIChat("m", endpoint=Endpoint(api.url, "MY_KEY"), patience=QUICK, max_new_tokens=11)
        assert chat("a") == "you said a"
        found = chat.many(["b", "c"])
    assert reasons(found) == ["truncated", "-"]
    assert api.seen[0].body["temperature"] == 0 and api.seen[0].body["max_tokens"] == 11
