"""The suites' backend is the policy that samples and trains: same ids, ends and log-probabilities in every style."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.models.formats import formatter
from align.policies.base import ModelPolicy
from align.turns import Turn, transcript
from evals.backends.base import Completion, Generation
from evals.backends.batching import Batcher
from evals.backends.rendering import prompt_of
from evals.backends.transformers import TransformersBackend
from evals.items import Prompt
from factories.chat_styles import STYLES, chat_checkpoint

TWO_TURNS = transcript([Turn("user", "hi"), Turn("assistant", "hello"), Turn("user", "the tin?")])
TEXTS = ("in the start", "Sit here, and stir it", TWO_TURNS)


@pytest.mark.parametrize("style", [style.name for style in STYLES])
def test_suites_ask_and_score_the_policy_that_was_sampled(style: str, tmp_path: Path) -> None:
    policy = ModelPolicy(chat_checkpoint(style, tmp_path, hostile=True))
    backend = TransformersBackend(policy.model, policy.tokenizer, name="suite")
    drawn = policy.draw(TEXTS * 2, max_new_tokens=6, seed=0)
    expected = policy.sequence_logprobs(TEXTS * 2, drawn)
    prompts = [prompt_of(text) for text in TEXTS]
    heads = [backend.encode(prompt) for prompt in prompts]
    assert heads == policy.prompt_ids(TEXTS) and set(backend.ends) >= {formatter(policy.tokenizer).format.end}
    for size, left in ((1, True), (3, True), (6, False)):
        for start in range(0, 6, size):
            rows = [([*heads[i % 3], *drawn[i].ids], len(heads[i % 3])) for i in range(start, start + size)]  # type: ignore[misc]
            found = [sum(values) for values in backend._token_logprobs(rows, left)]
            assert found == pytest.approx(expected[start : start + size], abs=1e-4)


@pytest.mark.parametrize("style", ["gemma", "llama3"])
def test_suites_draw_from_the_policys_law_whatever_the_checkpoints_habits(style: str, tmp_path: Path) -> None:
    policy = ModelPolicy(chat_checkpoint(style, tmp_path, hostile=True))
    backend = TransformersBackend(policy.model, policy.tokenizer, name="suite")
    prompt, count = Prompt((Turn("user", "in the start"),)), 3000
    ids = torch.tensor(policy.prompt_ids(["in the start"]))
    law_V = policy.next_token_logprobs(ids, torch.ones_like(ids))[0].exp()
    backend.batcher = Batcher(500)
    found = backend.generate([prompt] * count, config=Generation(1, temperature=1.0), seeds=range(count))
    counts_V = torch.zeros_like(law_V)
    for completion in found:
        assert isinstance(completion, Completion)
        counts_V[completion.ids[0]] += 1
    spread_V = (law_V * (1 - law_V) * count).sqrt().clamp(min=1)
    assert float(((counts_V - law_V * count) / spread_V).abs().max()) < 5 and int((counts_V > 0).sum()) > 20
