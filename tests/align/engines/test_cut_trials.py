"""Toy trials of cut samples: DPO through our path gains the same J as a torch loop on the ids that were drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from align.data.comparisons import Pair, annotated_pairs
from align.engines.pairs import PairTrainingConfig, train_on_pairs
from align.models import ModelConfig, build_model, load_model, save_model
from align.policies.base import ModelPolicy
from align.preferences import Weights
from factories.tiny_bandit import RESPONSES, WORDS, make_tokenizer, workspace

CUT, BETA, TAU, STEPS, RATE = 8, 0.1, 0.1, 40, 3e-3
PROMPTS = ["x :", "y y :", "x y :"]
REWARDS: dict[str, Callable[[Sequence[str]], float]] = {  # of the words written before the end
    "longer": lambda words: len(words) / CUT,
    "shorter": lambda words: 1 - len(words) / CUT,
    "words A and B": lambda words: sum(word in "AB" for word in words) / CUT,
}
IDS = {word: i for i, word in enumerate(WORDS)}


def reference(folder: Path, *, seed: int) -> Path:
    """A model of words at random that ends after each with probability .08: half of its samples are cut."""
    tokenizer, rng = make_tokenizer(), random.Random(seed)
    model = build_model(ModelConfig(hidden=32, layers=2, heads=2, context=32, tie=False), tokenizer, seed=seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        rows = []
        for _ in range(96):
            words = rng.choice(PROMPTS).split()
            start = len(words)
            while rng.random() > 0.08 and len(words) < start + 20:
                words.append(rng.choice(RESPONSES))
            rows.append(([IDS[word] for word in [*words, "<end>"]], start))
        loss = -torch.cat(logprobs(model, rows)).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return save_model(model, tokenizer, folder)


def logprobs(model: torch.nn.Module, rows: Sequence[tuple[list[int], int]]) -> list[torch.Tensor]:
    """Of each row's tokens from `start` on, padded on the right."""
    ids = pad_sequence([torch.tensor(row) for row, _ in rows], batch_first=True)
    seen = pad_sequence([torch.ones(len(row), dtype=torch.long) for row, _ in rows], batch_first=True)
    found = model(input_ids=ids, attention_mask=seen).logits[:, :-1].log_softmax(-1)
    found = found.gather(-1, ids[:, 1:, None])[..., 0]
    return [found[i, start - 1 : len(row) - 1] for i, (row, start) in enumerate(rows)]


def trained_by_hand(path: Path, pairs: Sequence[Pair], *, folder: Path) -> Path:
    """DPO as its paper has it, on ids as drawn, all pairs in each step."""
    model, optimiser = load_model(path), None

    def margins() -> torch.Tensor:
        rows = []
        for side in ("chosen_ids", "rejected_ids"):
            for pair in pairs:
                head = [IDS[word] for word in pair.prompt.split()]
                rows.append(([*head, *getattr(pair, side)], len(head)))
        sums = torch.stack([one.sum() for one in logprobs(model, rows)])
        return sums[: len(pairs)] - sums[len(pairs) :]

    with torch.no_grad():
        start = margins()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        loss = -torch.nn.functional.logsigmoid(BETA / TAU * (margins() - start)).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return save_model(model, make_tokenizer(), folder)


def outcome(path: Path, start: Path, reward: Callable[[Sequence[str]], float]) -> tuple[float, float]:
    """(J, KL) over 3,000 responses: E[r] less beta times KL, both of ids as drawn."""
    policy, prompts = ModelPolicy(path), PROMPTS * 1000
    drawn = policy.draw(prompts, max_new_tokens=CUT, seed=77, batch_size=500)
    here, there = policy.sequence_logprobs(prompts, drawn), ModelPolicy(start).sequence_logprobs(prompts, drawn)
    kl = sum(a - b for a, b in zip(here, there, strict=True)) / len(drawn)
    return sum(reward(reply.text.split()) for reply in drawn) / len(drawn) - BETA * kl, kl


@pytest.mark.slow
@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_on_cut_samples_gains_what_dpo_on_ids_as_drawn_gains(kind: str, seed: int, tmp_path: Path) -> None:
    start, reward = reference(tmp_path / "reference", seed=seed), REWARDS[kind]
    policy, prompts = ModelPolicy(start), PROMPTS * 100
    first, second = (policy.draw(prompts, max_new_tokens=CUT, seed=5 + seed + n, batch_size=300) for n in (0, 45))
    both = [(p, a, b) for p, a, b in zip(prompts, first, second, strict=True) if a.ids != b.ids and a.text and b.text]
    rows = [
        {"id": str(i), "prompt": p, "a": f" {a.text}", "b": f" {b.text}", "a_ids": list(a.ids), "b_ids": list(b.ids)}
        for i, (p, a, b) in enumerate(both)
    ]
    cut = sum(not reply.ended for reply in first) / len(first)
    assert 0.3 < cut < 0.7
    scores = {r["id"]: ((reward(r["a"].split()),), (reward(r["b"].split()),)) for r in rows}
    config = PairTrainingConfig(
        batch_size=len(rows), epochs=STEPS, learning_rate=RATE, scheduler="constant", max_grad_norm=1e9
    )
    texts = [{key: value for key, value in row.items() if not key.endswith("_ids")} for row in rows]
    for name, given in (("ours", rows), ("closed", texts)):
        pairs = annotated_pairs(given, scores=scores, weights=Weights((1.0,)), tau=TAU, seed=seed)
        train_on_pairs(pairs, config=config, reference=str(start), beta=BETA / TAU, run=workspace(tmp_path / name))
    drawn = annotated_pairs(rows, scores=scores, weights=Weights((1.0,)), tau=TAU, seed=seed)
    by_hand = trained_by_hand(start, drawn, folder=tmp_path / "by_hand")
    found = {
        name: outcome(path, start, reward)
        for name, path in (
            ("reference", start), ("by hand", by_hand), ("ours", tmp_path / "ours" / "model"),
            ("texts", tmp_path / "closed" / "model"),
        )
    }  # fmt: skip
    said = " ".join(f"{name} {j:.4f} {kl:.3f}" for name, (j, kl) in found.items())
    print(f"{kind}, seed {seed}, {cut:.2f} cut, {len(rows)} pairs: J, KL of {said}")
    assert abs(found["ours"][0] - found["by hand"][0]) < 0.01
    assert found["ours"][0] > found["reference"][0]
