"""align.models.sampling: the policy that is drawn from is the one that is scored; what was drawn is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from align.models import attach_lora, load_model, load_tokenizer, save_model
from align.models.sampling import Drawn, plain_sampling
from align.policies.base import ModelPolicy
from factories.tiny_bandit import PROMPTS, make_reference, make_tokenizer

# What a published checkpoint may carry; the second half is in no list of TRL's own settings.
HABITS = {
    "do_sample": True, "temperature": 0.7, "top_k": 3, "top_p": 0.8, "repetition_penalty": 1.3, "min_p": 0.6,
    "typical_p": 0.5, "epsilon_cutoff": 0.2, "no_repeat_ngram_size": 1, "suppress_tokens": [5], "bad_words_ids": [[6]],
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_reference(tmp_path_factory.mktemp("plain"), one_token=False, sharpness=2.0)


@pytest.fixture(scope="module")
def hub(plain: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same weights with sampling habits of their own."""
    folder = tmp_path_factory.mktemp("hub")
    save_model(load_model(plain), load_tokenizer(plain), folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **HABITS}), encoding="utf-8")
    assert load_model(folder).generation_config.min_p == 0.6
    return str(folder)


def test_a_policy_is_sampled_without_the_habits_of_its_checkpoint(plain: str, hub: str) -> None:
    ours, theirs = (
        ModelPolicy(path).draw(list(PROMPTS) * 40, max_new_tokens=5, seed=3, batch_size=80) for path in (plain, hub)
    )
    assert ours == theirs
    assert {5, 6} <= {token for response in theirs for token in response.ids}  # both were forbidden


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoints_own_config_comes_back(hub: str, wrapped: bool) -> None:
    model: Any = load_model(hub)
    inner, kept = model, model.generation_config
    model = attach_lora(model, 2) if wrapped else model
    ids = torch.tensor([[2, 4]])
    with pytest.raises(RuntimeError), plain_sampling(model, make_tokenizer(), max_tokens=3) as ends:
        assert ends == [1] and model.generation_config.min_p is None
        assert model.generate(input_ids=ids, attention_mask=torch.ones_like(ids)).shape[1] <= 5
        raise RuntimeError
    assert model.generation_config is kept and inner.generation_config is kept and kept.suppress_tokens == [5]


def test_what_was_drawn_is_read_back_token_by_token(plain: str) -> None:
    """The model may draw <pad> itself, which no text keeps: the text is charged another response, and its end token."""
    policy = ModelPolicy(plain)
    drawn = policy.draw(["x :"] * 200, max_new_tokens=3, seed=1, batch_size=200)
    assert [response.text for response in drawn] == policy.generate(
        ["x :"] * 200, max_new_tokens=3, seed=1, batch_size=200
    )
    expected = []
    for response in drawn:
        assert response.ended == (response.ids[-1] == 1) and (response.ended or len(response.ids) == 3)
        with torch.no_grad():
            logp_TV = policy.model(input_ids=torch.tensor([[2, 4, *response.ids]])).logits[0].log_softmax(-1)
        expected.append(sum(logp_TV[1 + t, token].item() for t, token in enumerate(response.ids)))
    found = policy.sequence_logprobs(["x :"] * 200, drawn, max_new_tokens=3)
    assert found == pytest.approx(expected, abs=1e-5)
    texts = policy.sequence_logprobs(["x :"] * 200, [response.text for response in drawn], max_new_tokens=3)
    odd = [i for i, response in enumerate(drawn) if 0 in response.ids]
    assert odd and all(abs(texts[i] - expected[i]) > 1e-3 for i in odd)
    assert any(not drawn[i].ended for i in odd)  # cut, and charged an end token as a text
    same = [i for i, response in enumerate(drawn) if 0 not in response.ids]
    assert [texts[i] for i in same] == pytest.approx([expected[i] for i in same], abs=1e-5)


def test_a_response_ends_at_its_first_ending_token() -> None:
    assert Drawn.of([5, 3, 1, 0], ends=(1, 3), text=" A") == Drawn((5, 3), True, " A")
    assert Drawn.of([5, 6], ends=(1,)) == Drawn((5, 6), False)
    assert Drawn.of([1, 0, 0], ends=(1,)) == Drawn((1,), True)


def test_a_mixture_is_drawn_with_its_ids(plain: str, hub: str, tmp_path: Path) -> None:
    from align.policies.mixed import MixedPolicy, Mixture

    alone = ModelPolicy(plain).draw(list(PROMPTS) * 10, max_new_tokens=4, seed=2)
    mixed = MixedPolicy((plain, hub), mixture=Mixture((0.5, 0.5)), name="twice the same")
    assert mixed.draw(list(PROMPTS) * 10, max_new_tokens=4, seed=2) == alone
    assert mixed.sequence_logprobs(list(PROMPTS) * 10, alone) == pytest.approx(
        ModelPolicy(plain).sequence_logprobs(list(PROMPTS) * 10, alone), abs=1e-5
    )
