"""What training on pairs leans on in TRL, checked on the installed TRL: DPO's loss and rows, the reward trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from factories.formulae import bradley_terry_loss, dpo_loss
from factories.pair_trainer import pair_trainer
from factories.tiny_bandit import RESPONSES, WORDS, make_tokenizer


def words_of(ids: Sequence[int]) -> str:
    return " ".join(WORDS[i] for i in ids)


def loss_and_logps(trainer: Any) -> tuple[float, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """TRL's loss on the whole dataset, and the policy's own log-probabilities of chosen and rejected."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch).item()
        logp = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(
            -1
        )
    taken = logp[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0] * batch["completion_mask"][:, 1:]
    chosen, rejected = taken.sum(-1).chunk(2)
    return loss, chosen, rejected, batch


def test_dpo_reads_the_reference_columns_of_the_dataset(many_tokens: str, tmp_path: Path) -> None:
    """MODPO rests on this: replaced columns are what the loss sees, at the coefficient beta of the config."""
    trainer = pair_trainer(many_tokens, tmp_path)
    assert set(trainer.train_dataset.column_names) >= {"id", "ref_chosen_logps", "ref_rejected_logps"}
    assert trainer.beta == 2.5
    plain = loss_and_logps(trainer)[0]
    assert plain == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)  # the policy is the reference
    shift = torch.linspace(-1, 1, 16)
    for column, sign in (("ref_chosen_logps", 1.0), ("ref_rejected_logps", -1.0)):
        values = torch.tensor(trainer.train_dataset[column]) + sign * shift
        trainer.train_dataset = trainer.train_dataset.remove_columns(column).add_column(column, values.numpy())
    loss, chosen, rejected, batch = loss_and_logps(trainer)
    expected = dpo_loss(
        chosen,
        rejected_B=rejected,
        ref_chosen_B=batch["ref_chosen_logps"],
        ref_rejected_B=batch["ref_rejected_logps"],
        beta=2.5,
    )
    assert loss == pytest.approx(expected.mean().item(), abs=1e-5)
    assert abs(loss - plain) > 0.1


def test_dpo_precomputes_the_reference_of_the_checkpoint_with_the_end_token(many_tokens: str, tmp_path: Path) -> None:
    from align.policies.base import ModelPolicy

    data = pair_trainer(many_tokens, tmp_path).train_dataset
    assert all(ids[-1] == WORDS.index("<end>") and len(ids) == 2 for ids in data["chosen_ids"])
    prompts = [words_of(ids) for ids in data["prompt_ids"]]
    expected = ModelPolicy(many_tokens).sequence_logprobs(
        prompts, [f" {words_of(ids[:-1])}" for ids in data["rejected_ids"]]
    )
    assert list(data["ref_rejected_logps"]) == pytest.approx(expected, abs=1e-4)


def test_dpo_adds_the_mean_token_likelihood_of_the_chosen(many_tokens: str, tmp_path: Path) -> None:
    plain = loss_and_logps(pair_trainer(many_tokens, tmp_path / "plain"))[0]
    trainer = pair_trainer(many_tokens, tmp_path / "mle", mle_weight=0.25)
    loss, chosen, _, batch = loss_and_logps(trainer)
    tokens = batch["completion_mask"].chunk(2)[0][:, 1:].sum()
    assert loss == pytest.approx(plain - 0.25 * (chosen.sum() / tokens).item(), abs=1e-5)


def test_dpo_drops_rows_whose_prompt_fills_the_length(many_tokens: str, tmp_path: Path) -> None:
    trainer = pair_trainer(many_tokens, tmp_path, max_length=3)
    assert len(trainer.train_dataset) == 8  # those of "x :"; "y y :" has three tokens
    assert {words_of(ids) for ids in trainer.train_dataset["prompt_ids"]} == {"x :"}
    assert trainer.lost["pairs_dropped_by_length"] == 8


def test_reward_trainer_minimises_bradley_terry_on_texts_with_the_end_token(many_tokens: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from align.models import load_scorer
    from align.training.common import StageConfig, base_arguments

    tokenizer = make_tokenizer()
    rows = [
        {"prompt": "x :", "chosen": f" {a}", "rejected": f" {b}"}
        for a, b in zip(RESPONSES, RESPONSES[::-1], strict=True)
    ]
    arguments = base_arguments(tmp_path, StageConfig(seed=0, learning_rate=1e-3, batch_size=4, max_steps=1))
    trainer = RewardTrainer(
        model=load_scorer(many_tokens, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id),
        args=RewardConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    assert all(ids[-1] == tokenizer.eos_token_id for ids in trainer.train_dataset["chosen_ids"])
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch).item()
        score = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    chosen, rejected = score.chunk(2)
    assert loss == pytest.approx(bradley_terry_loss(chosen, rejected_B=rejected).mean().item(), abs=1e-5)
