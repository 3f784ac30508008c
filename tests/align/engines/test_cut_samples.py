"""Samples that were cut are trained, charged and scored as they were drawn: no end is taught that never came."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.data.comparisons import Pair, annotated_pairs, given_pairs
from align.engines.pairs import PairTrainingConfig, dpo_trainer, pair_rows, train_on_pairs
from align.errors import UserError
from align.models import load_model, load_tokenizer
from align.models.formats import formatter
from align.policies.base import ModelPolicy
from align.preferences import Weights
from factories.chat_styles import chat_checkpoint
from factories.tiny_bandit import workspace

PROMPTS = ["in the start", "Sit here", "stir the tin", "a hat"] * 4


@pytest.fixture(scope="module", params=["llama3", "base"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_checkpoint(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def rows(checkpoint: Path) -> list[dict]:
    policy = ModelPolicy(checkpoint)
    first, second = (policy.draw(PROMPTS, max_new_tokens=5, seed=seed) for seed in (0, 1))
    assert sum(not reply.ended for reply in first + second) > 8
    return [
        {"id": str(i), "prompt": p, "a": a.text, "b": b.text, "a_ids": list(a.ids), "b_ids": list(b.ids), "u": i / 16}
        for i, (p, a, b) in enumerate(zip(PROMPTS, first, second, strict=True))
    ]


def labelled(rows: list[dict]) -> list[Pair]:
    scores = {row["id"]: ((0.0,), (1.0,)) for row in rows}
    return annotated_pairs(rows, scores=scores, weights=Weights((1.0,)), tau=1e-9, seed=0)


def test_labels_move_the_ids_with_the_texts(rows: list[dict]) -> None:
    for row, pair in zip(rows, labelled(rows), strict=True):
        assert pair.swapped and pair.chosen == row["b"] and pair.chosen_ids == tuple(row["b_ids"])
        assert pair.rejected == row["a"] and pair.rejected_ids == tuple(row["a_ids"])
    given = [{"id": "1", "prompt": "p", "chosen": "x", "rejected": "y", "chosen_ids": [1], "rejected_ids": [2]}]
    (pair,) = given_pairs(given, weights=Weights((1.0,)), names=["one"])
    assert (pair.chosen_ids, pair.rejected_ids) == ((1,), (2,))
    with pytest.raises(UserError, match="comparison 1: ids of a response are 'x'"):
        given_pairs([{**given[0], "chosen_ids": "x"}], weights=Weights((1.0,)), names=["one"])


def test_dpo_reads_what_was_drawn_and_its_reference_is_the_samplers(
    checkpoint: Path, rows: list[dict], tmp_path
) -> None:
    policy, tokenizer = ModelPolicy(checkpoint), load_tokenizer(checkpoint)
    trainer = dpo_trainer(
        labelled(rows), config=PairTrainingConfig(batch_size=4), reference=str(checkpoint), beta=0.1, folder=tmp_path
    )
    form = formatter(tokenizer)
    drawn = policy.draw(PROMPTS, max_new_tokens=5, seed=1)
    expected = policy.sequence_logprobs(PROMPTS, drawn)
    for row, given, logp in zip(trainer.train_dataset, rows, expected, strict=True):
        assert row["prompt_ids"] == form.prompt_ids(given["prompt"])
        assert row["chosen_ids"] == given["b_ids"] and row["rejected_ids"] == given["a_ids"]
        assert row["ref_chosen_logps"] == pytest.approx(logp, abs=1e-4)


def test_training_on_rows_is_training_on_ids_as_drawn(checkpoint: Path, rows: list[dict], tmp_path: Path) -> None:
    """The same weights as a loop of torch on the drawn ids; on texts, which are closed, others."""
    config = PairTrainingConfig(batch_size=16, learning_rate=1e-3, epochs=1, max_grad_norm=1e9)
    train_on_pairs(labelled(rows), config=config, reference=str(checkpoint), beta=0.1, run=workspace(tmp_path / "a"))
    texts = [{k: v for k, v in row.items() if not k.endswith("_ids")} for row in rows]
    train_on_pairs(labelled(texts), config=config, reference=str(checkpoint), beta=0.1, run=workspace(tmp_path / "b"))
    model, form = load_model(checkpoint), formatter(load_tokenizer(checkpoint))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def logp(prompt: str, ids: list[int]) -> torch.Tensor:
        head = form.prompt_ids(prompt)
        logits = model(torch.tensor([[*head, *ids]])).logits[0, len(head) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).sum()

    margins = torch.stack([logp(r["prompt"], r["b_ids"]) - logp(r["prompt"], r["a_ids"]) for r in rows])
    loss = -torch.nn.functional.logsigmoid(0.1 * (margins - margins.detach())).mean()
    loss.backward()
    optimiser.step()
    ours, closed = (load_model(tmp_path / name / "model").get_input_embeddings().weight for name in "ab")
    torch.testing.assert_close(ours, model.get_input_embeddings().weight, rtol=0, atol=2e-5)
    assert float((closed - ours).detach().abs().max()) > 1e-4


def test_what_the_length_does_is_counted(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    form = formatter(tokenizer)
    room = len(form.prompt_ids("a hat")) + 2
    pairs = [
        Pair("equal", "a hat", " the start", " the stir", False), Pair("cut", "a hat", " the start", " a", False),
        Pair("long", "a hat in the start and more", " a", " the", False),
    ]  # fmt: skip
    kept, lost = pair_rows(pairs, tokenizer=tokenizer, max_length=room)
    assert lost["pairs_dropped_by_length"] == 1 and lost["pairs_cut_by_length"] >= 1
    assert lost["pairs_dropped_as_equal"] + len(kept) == 2 and "cut" in {row["id"] for row in kept}
