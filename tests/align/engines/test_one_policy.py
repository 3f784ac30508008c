"""The sampler, the ratio and the reference are one policy: no sampling habits, no dropout of attention weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.data.comparisons import Pair
from align.engines.on_policy import trainer as onpolicy
from align.engines.pairs import dpo_trainer
from align.errors import UserError
from align.methods import dpo, morlhf
from align.models import load_model
from align.models.dropout import set_dropout
from factories.tiny_bandit import make_reference, problem_of, workspace

HABITS = {"min_p": 0.6, "typical_p": 0.5, "no_repeat_ngram_size": 1, "suppress_tokens": [5, 6]}


class Spy:
    """Keeps the ids that the trainer samples."""

    def __init__(self) -> None:
        self.__name__ = "spy"
        self.ids: list[tuple[int, ...]] = []

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float]:
        self.ids += [tuple(ids) for ids in completion_ids]
        return [float(len(ids)) for ids in completion_ids]


def edited(folder: Path, name: str, **values: Any) -> str:
    """The tiny reference, with these values in one of its JSON files."""
    path = make_reference(folder, one_token=False, sharpness=2.0)
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    return path


def trained(reference: str, folder: Path, *, algorithm: str = "rloo") -> tuple[Any, Spy]:
    config = morlhf.Config(
        steps=1, batch_size=64, num_generations=16, max_completion_length=4, learning_rate=1e-12, logging_steps=1
    )
    spy, run = Spy(), workspace(folder)
    problem = problem_of(reference, objectives={}, prompts=[{"prompt": "x :"}, {"prompt": "y y :"}])
    trainer = onpolicy.build_trainer(
        config, problem, run, rewards=[(spy, 1.0)], update=onpolicy.Update(algorithm=algorithm)
    )
    onpolicy.run_trainer(trainer, label="test", folder=folder, ledger=run.ledger)
    return trainer, spy


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_on_policy_samples_are_those_of_the_policy(algorithm: str, tmp_path: Path) -> None:
    """Bit for bit those of the same weights without habits; the saved model has its habits still."""
    plain = edited(tmp_path / "plain", "generation_config.json")
    hub = edited(tmp_path / "hub", "generation_config.json", **HABITS)
    samples = [trained(path, tmp_path / f"{i}", algorithm=algorithm)[1].ids for i, path in enumerate((plain, hub))]
    assert samples[0] == samples[1] and {5, 6} <= {token for ids in samples[1] for token in ids}
    saved = json.loads((tmp_path / "1" / "model" / "generation_config.json").read_text(encoding="utf-8"))
    assert {name: saved[name] for name in HABITS} == HABITS and "max_new_tokens" not in saved


def test_attention_dropout_of_a_checkpoint_is_off_where_a_policy_trains(tmp_path: Path) -> None:
    """At learning rate 0 policy and reference are one: no clipped ratio, no KL, and DPO's loss is log 2."""
    reference = edited(tmp_path / "hub", "config.json", attention_dropout=0.3)
    ids = torch.tensor([[2, 3, 4, 5]])
    loaded = load_model(reference).train()
    assert not torch.equal(loaded(input_ids=ids).logits, loaded(input_ids=ids).logits)  # the fault is there to see
    trainer, _ = trained(reference, tmp_path / "rloo")
    logged = trainer.state.log_history[0]
    assert logged["clip_ratio/region_mean"] == 0 and logged["kl"] == pytest.approx(0, abs=1e-6)
    assert trainer.model.config.attention_dropout == 0.0
    pair = Pair("0", "y y :", " A B", " C", False)
    pairs = dpo_trainer([pair], config=dpo.Config(batch_size=1), reference=reference, beta=1.0, folder=tmp_path)
    pairs.model.train()
    batch = pairs.data_collator([pairs.train_dataset[0]])
    losses = [float(pairs._compute_loss(pairs.model, batch, False)) for _ in range(3)]
    assert losses == pytest.approx([0.6931472] * 3, abs=1e-5)


def test_dropout_that_is_a_number_of_a_layer_is_off_too() -> None:
    """OPT drops residuals, attention weights and whole layers by numbers that no nn.Dropout holds."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=30, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, dropout=0.4, attention_dropout=0.4, layerdrop=0.4, init_std=0.5,
    )  # fmt: skip
    model, ids = OPTForCausalLM(config).train(), torch.tensor([[2, 3, 4, 5]])
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    set_dropout(model, 0.0)
    assert torch.equal(model(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    with pytest.raises(UserError, match="no place for it"):
        set_dropout(model, 0.1)
