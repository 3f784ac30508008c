"""The vLLM backend against a stand-in module with the few calls that it makes; no real vLLM is run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from align.errors import UserError
from align.turns import Turn
from evals.backends.base import Backend, Completion, Generation
from evals.backends.vllm import VLLMBackend
from evals.items import Missing, Prompt
from factories.chat_styles import chat_checkpoint, chat_tokenizer


class LLM:
    """Answers with the prompt's tokens backwards, cut at max_tokens; log-probability of token t is -t."""

    last: Any = None

    def __init__(self, **options: Any) -> None:
        self.options, self.calls = options, list[Any]()
        LLM.last = self

    def generate(self, prompts: Any, params: Any, *, use_tqdm: bool, lora_request: Any) -> list[Any]:
        assert len(prompts) == len(params) and use_tqdm is False
        self.calls.append((prompts, params, lora_request))
        return [self._one(prompt["prompt_token_ids"], param) for prompt, param in zip(prompts, params, strict=True)]

    def _one(self, ids: list[int], param: Any) -> Any:
        out = [*ids[::-1], *getattr(param, "stop_token_ids", [])[:1]][: param.max_tokens]
        other = SimpleNamespace(logprob=9.0)
        logprobs = [{i: SimpleNamespace(logprob=-float(t)), -1: other} if t else None for t, i in enumerate(ids)]
        one = SimpleNamespace(text="vLLM's own words", token_ids=out, finish_reason="stop")
        return SimpleNamespace(outputs=[one], prompt_logprobs=logprobs if hasattr(param, "prompt_logprobs") else None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams = LLM, lambda **options: SimpleNamespace(**options)  # type: ignore[attr-defined]
    request.LoRARequest = lambda *parts: parts  # type: ignore[attr-defined]
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    chat_checkpoint("base", tmp_path / "model", hidden=8)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "model.safetensors").write_bytes(b"adapter")
    return tmp_path


def test_generation_in_order_with_what_does_not_fit_missing(folder: Path) -> None:
    backend = VLLMBackend(folder / "model", template="plain", context=10, dtype="float16")
    assert isinstance(backend, Backend) and backend.can >= {"logprobs", "prefill"}
    assert LLM.last.options == {
        "model": str(folder / "model"), "max_model_len": 10, "enable_lora": False, "dtype": "float16"
    }  # fmt: skip
    ids, end = chat_tokenizer("base").convert_tokens_to_ids, 0
    prompts = [Prompt.user(text) for text in ("abcde", "1234567", "xy")]
    found = backend.generate(prompts, config=Generation(4, temperature=0.5), seeds=[1, 2, 2**40 + 3])
    assert found[0] == Completion("edcb", 4, False, ids=tuple(ids(list("edcb"))))
    assert found[2] == Completion("yx", 2, True, ids=(*ids(["y", "x"]), end))
    assert isinstance(found[1], Missing) and (found[1].reason, found[1].lasting) == ("context", True)
    _, params, lora = LLM.last.calls[0]
    assert [p.seed for p in params] == [1, 3] and params[0].stop_token_ids == [end] and lora is None
    (stopped,) = backend.generate(prompts[:1], config=Generation(4, stop=("c",)), seeds=[5])
    assert stopped == Completion("ed", 3, True, ids=tuple(ids(list("edc"))))
    asked = LLM.last.calls[1][1][0]
    assert not hasattr(asked, "seed") and asked.stop == ["c"]
    with pytest.raises(ValueError, match="1 seeds"):
        backend.generate(prompts, config=Generation(4), seeds=[1])


def test_log_probabilities_are_of_the_continuations_own_tokens(folder: Path) -> None:
    backend = VLLMBackend(folder / "model", template="plain", context=10)
    prompts = [Prompt.user("abc"), Prompt.user("ab "), Prompt.user("abcdefgh"), Prompt.user("q")]
    found = backend.continuation_logprobs(prompts, continuations=["de", "c", "ij", ""])
    assert found[0] == (-7.0, 2)  # places 3 and 4
    assert found[1] == (-5.0, 2)  # the blank at place 2 counts with the continuation
    assert [value.reason for value in found[2:] if isinstance(value, Missing)] == ["context", "empty_continuation"]


def test_adapters_and_fingerprints(folder: Path) -> None:
    first = VLLMBackend(folder / "model", template="plain")
    tuned = VLLMBackend(folder / "model", adapter=folder / "adapter", template="plain")
    assert LLM.last.options["enable_lora"] is True
    tuned.generate([Prompt.user("a")], config=Generation(), seeds=[0])
    assert LLM.last.calls[0][2] == ("adapter", 1, str(folder / "adapter"))
    half = VLLMBackend(folder / "model", template="plain", dtype="float16").fingerprint
    prints = {first.fingerprint, tuned.fingerprint, VLLMBackend(folder / "model", template="hh").fingerprint, half}
    again = VLLMBackend(folder / "model", template="plain", tensor_parallel_size=2).fingerprint
    assert again in prints and len(prints) == 4
    (folder / "model" / "model.safetensors").write_bytes(b"other")
    assert VLLMBackend(folder / "model", template="plain").fingerprint not in prints


def test_a_tagged_policy_is_asked_with_its_tags_and_never_writes_one(folder: Path) -> None:
    plain = VLLMBackend(folder / "model", template="hh")
    tagged = VLLMBackend(folder / "model", template="hh", lead="<one: 0.3> ", banned=(7, 8))
    prompt = Prompt((Turn("user", "hi"), Turn("assistant", "yes"), Turn("user", "abc")))
    tagged.generate([prompt], config=Generation(4), seeds=[0])
    ((asked,), (param,), _) = LLM.last.calls[0]
    said = Prompt((*prompt.turns[:-1], Turn("user", "<one: 0.3> abc")))
    assert asked["prompt_token_ids"] == plain.encode(said) == tagged.encode(prompt)
    assert param.logit_bias == {7: -100.0, 8: -100.0} and tagged.fingerprint != plain.fingerprint
    assert "logprobs" not in tagged.can
    (lost,) = tagged.continuation_logprobs([prompt], continuations=[" no"])
    assert isinstance(lost, Missing) and lost.reason == "unsupported_logprobs"
    text = VLLMBackend(folder / "model", template="hh", lead="<one: 0.3> ")
    found = text.continuation_logprobs([prompt, Prompt((Turn("assistant", "a"),))], continuations=[" no", " no"])
    assert found[0] == plain.continuation_logprobs([said], continuations=[" no"])[0]
    assert isinstance(found[1], Missing) and found[1].reason == "no_user_turn"


def test_mistakes_are_told_in_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no weights"):
        VLLMBackend(folder / "nowhere")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"align-tradeoffs\[vllm\]"):
        VLLMBackend(folder / "model")
