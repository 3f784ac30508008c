"""Rewards, the reference's view, bits and hidden states, against the same numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from align.models import load_model, load_tokenizer
from align.turns import Turn
from evals.backends.base import Generation
from evals.backends.rendering import renderer
from evals.backends.transformers import TransformersBackend
from evals.items import Item, Missing, Prompt
from evals.measure.cells import Cell, ask
from evals.measure.engine import Engine
from evals.measure.measurements import CompletionOf
from evals.measure.model_measurements import AgainstReference, BitsPerByte, Rewards
from evals.measure.store import CellStore
from evals.shifts.base import Shift
from factories.chat_styles import chat_tokenizer

PLAIN = Shift("none", "none", "none", lambda text, rng: Prompt.user(text))
LOUD = Shift("loud", "style", "mismatched", lambda text, rng: Prompt.user(text.upper()), decode=str.lower)


def made(folder: Path, seed: int, name: str) -> TransformersBackend:
    """The tiny model with random changes, so that two of them are two distributions far from flat."""
    model = load_model(folder)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6).add_(torch.randn_like(parameter) * 0.1)
    return TransformersBackend(model, load_tokenizer(folder), name=name, template="plain")


@pytest.fixture(scope="module")
def pair(tiny_model: Path) -> tuple[TransformersBackend, TransformersBackend]:
    return made(tiny_model, 1, "policy"), made(tiny_model, 2, "reference")


def request(text: str, answer: str, *, finished: bool, shift: Shift = PLAIN, item: Item | None = None) -> Cell:
    prompt = shift.encode(text, Random(0))
    assert isinstance(prompt, Prompt)
    completion = {"completion": {"text": answer, "tokens": 1, "finished": finished}}
    return Cell("s", item or Item("i", text), shift, 0, prompt, completion)


def by_hand(backend: TransformersBackend, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(backend.model(torch.tensor([ids])).logits[0].double(), -1)


def test_kl_and_log_ratio_along_a_completion(pair: tuple[TransformersBackend, TransformersBackend]) -> None:
    policy, reference = pair
    texts = [("bread and", " cheese", True), ("why", " tea for boats", False), ("ink", "", True)]
    found = AgainstReference(reference).measure(
        [request(text, answer, finished=finished) for text, answer, finished in texts], backend=policy
    )
    for (text, answer, finished), value in zip(texts, found, strict=True):
        assert not isinstance(value, Missing)
        head = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = policy.tokenizer(text + answer, add_special_tokens=False)["input_ids"]
        ids += [policy.tokenizer.eos_token_id] if finished else []
        p, q = by_hand(policy, ids), by_hand(reference, ids)
        places = range(len(head) - 1, len(ids) - 1)
        kl = [float((p[t].exp() * (p[t] - q[t])).sum()) for t in places]
        ratio = sum(float(p[t, ids[t + 1]] - q[t, ids[t + 1]]) for t in places)
        assert value["kl"] == pytest.approx(kl, abs=1e-4) and min(kl) > 0.01
        assert value["log_ratio"] == pytest.approx(ratio, abs=1e-3)


def test_a_policy_has_no_kl_from_itself(pair: tuple[TransformersBackend, TransformersBackend]) -> None:
    (value,) = AgainstReference(pair[0]).measure([request("tea", " ink", finished=True)], backend=pair[0])
    assert not isinstance(value, Missing) and value["log_ratio"] == 0 and max(map(abs, value["kl"])) < 1e-6


def test_rewards_read_the_original_request_and_the_decoded_response(tiny_model: Path) -> None:
    seen: list[tuple[str, str]] = []

    def length(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [float(len(p) + 100 * len(c)) for p, c in zip(prompts, completions, strict=True)]

    hh = renderer(load_tokenizer(tiny_model), template="hh")
    item = Item("i", "why tea", before=(Turn("user", "hi"), Turn("assistant", "yes")))
    measured = Rewards({"length": length}, {"length": "f"}, hh)
    good, empty = measured.measure(
        [request("why tea", " SURE \n", finished=True, shift=LOUD, item=item), request("x", " ", finished=True)],
        backend=None,  # type: ignore[arg-type]
    )
    assert seen == [
        ("\n\nHuman: hi\n\nAssistant: yes\n\nHuman: why tea\n\nAssistant:", " sure"),
        ("\n\nHuman: WHY TEA\n\nAssistant:", " SURE"),
    ]
    assert not isinstance(good, Missing) and good["length.plain"] == len(seen[0][0]) + 500
    assert good["length.shifted"] == len(seen[1][0]) + 500
    assert isinstance(empty, Missing) and empty.reason == "empty_completion"


def test_objectives_get_a_chat_policys_conversation_and_not_its_rendering() -> None:
    seen: list[tuple[str, str]] = []

    def kept(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    item = Item("i", "why tea ", before=(Turn("user", "hi"), Turn("assistant", "yes")))
    cell = request("why tea ", "Sure:\n- a\n", finished=True, item=item)
    Rewards({"kept": kept}, {"kept": "f"}, renderer(chat_tokenizer("llama3"))).measure([cell], backend=None)  # type: ignore[arg-type]
    assert seen == [
        ("\n\nHuman: hi\n\nAssistant: yes\n\nHuman: why tea \n\nAssistant:", " Sure:\n- a\n"),
        ("why tea ", " Sure:\n- a\n"),
    ]


def test_bits_per_byte_by_hand(pair: tuple[TransformersBackend, TransformersBackend]) -> None:
    policy, _ = pair
    (value, none) = BitsPerByte().measure(
        [request("bread é", "", finished=True), request("", "", finished=True)], backend=policy
    )
    ids = [policy.tokenizer.eos_token_id, *policy.tokenizer("bread é", add_special_tokens=False)["input_ids"]]
    logp = by_hand(policy, ids)
    nats = -sum(float(logp[t - 1, ids[t]]) for t in range(1, len(ids)))
    assert not isinstance(value, Missing) and value["bytes"] == 8
    assert value["per_byte"] == pytest.approx(nats / math.log(2) / 8, abs=1e-4)
    assert isinstance(none, Missing) and none.reason == "empty_prompt"


def test_everything_runs_through_the_engine_and_too_long_is_missing(
    pair: tuple[TransformersBackend, TransformersBackend], tmp_path: Path
) -> None:
    policy, reference = pair
    items = [Item("a", "bread"), Item("b", "tea " * 300)]
    measured = [
        CompletionOf(Generation(max_new_tokens=5)), AgainstReference(reference), BitsPerByte(),
    ]  # fmt: skip
    engine = Engine(policy, store=CellStore(tmp_path / "c.jsonl"), batch=4)
    found = engine.run(ask(items, suite="s", shifts=[PLAIN]), measurements=measured)
    for name in ("completion", "against_reference"):
        short, long = (cell.value(name) for cell in found)
        assert not isinstance(short, Missing), name
        assert isinstance(long, Missing) and long.reason == "context", name
    assert not isinstance(found[1].value("bits"), Missing), "a long text is read in windows"
