"""align.training.watch: held-out looks in each kind of training, the best point kept, a model that is destroyed."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.methods import dpo, kto, morlhf
from align.models import load_model, load_scorer, load_tokenizer
from align.preferences import Weights
from align.runs import Ledger, open_run
from align.training import watch as watching
from align.training.reward_model import RewardModelConfig, preference_accuracy, train_reward_model
from align.training.sft import SFTConfig_, sft
from align.training.watch import held_out_prompts
from factories.tiny_bandit import PAIRS, PROMPT_ROWS, RL, fit, pair_rows

MIXED = Weights((0.25, 0.75))
PROMPTS = [{"id": str(i), "prompt": text} for i, text in enumerate(("x :", "y :", "x x :", "y y :"))]


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{**row, "prompt": PROMPTS[i % 4]["prompt"]} for i, row in enumerate(pair_rows(count))]


def looks_of(family: Any) -> dict[str, Any]:
    return open_run(Path(family.points[MIXED.label]).parent).metrics["held_out"]


def test_whole_prompts_are_held_out_up_to_the_share() -> None:
    prompts = [f"p{i % 10}" for i in range(50)]
    out = held_out_prompts(prompts, share=0.2, seed=0)
    assert sum(out) == 10 and out == held_out_prompts(prompts, share=0.2, seed=0)
    assert not {p for p, held in zip(prompts, out, strict=True) if held} & {
        p for p, held in zip(prompts, out, strict=True) if not held
    }
    assert sum(held_out_prompts(prompts, share=0.001, seed=0)) == 5  # one prompt at least
    assert out != held_out_prompts(prompts, share=0.2, seed=1)
    assert sum(held_out_prompts([str(i) for i in range(5000)], share=0.5, seed=0)) == 256
    with pytest.raises(UserError, match="at least 2 different prompts"):
        held_out_prompts(["one"] * 5, share=0.5, seed=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"early_stopping": 2}, "set eval_steps"),
        ({"eval_steps": -1}, "eval_steps must be at least 0"),
        ({"eval_steps": 5, "validation": 1.0}, "between 0 and 1"),
    ],
)
def test_impossible_looks_are_refused(changes: dict[str, Any], words: str, reference: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        fit(dpo, dpo.Config(**{**PAIRS, **changes}), reference=reference, weights=[MIXED], out=tmp_path, comparisons=[])
    with pytest.raises(UserError, match="does not look at held-out rows"):
        kto.check_config(kto.Config(eval_steps=5))


def test_dpo_looks_at_prompts_that_it_does_not_train_on(reference: str, tmp_path: Path) -> None:
    config = dpo.Config(**{**PAIRS, "batch_size": 12, "epochs": 2.0, "tau": 0.05}, eval_steps=4, validation=0.25)
    family = fit(dpo, config, reference=reference, weights=[MIXED], out=tmp_path, comparisons=rows_of(64))
    seen = looks_of(family)
    assert [look["step"] for look in seen["looks"]] == [0, 4, 8] and not seen["kept_best"]  # 48 rows, 4 steps an epoch
    assert seen["looks"][0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)  # the policy is the reference
    assert all(look["eval_bits_per_byte"] > 0 for look in seen["looks"])
    assert seen["best_step"] == min(seen["looks"], key=lambda look: look["eval_loss"])["step"]
    assert not (tmp_path / "points" / MIXED.label / "best_point").exists()


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_on_policy_training_looks_at_j_of_held_out_prompts(algorithm: str, reference: str, tmp_path: Path) -> None:
    changes = {"steps": 4, "batch_size": 16, "num_generations": 4, "eval_steps": 2, "validation": 0.5}
    config = morlhf.Config(**{**RL, **changes}, algorithm=algorithm)
    family = fit(morlhf, config, reference=reference, weights=[MIXED], out=tmp_path, prompts=PROMPT_ROWS)
    looks = looks_of(family)["looks"]
    assert [look["step"] for look in looks] == [0, 2, 4]
    assert looks[0]["eval_kl_of_responses"] == pytest.approx(0, abs=1e-4)
    assert all(math.isfinite(look["eval_J"]) for look in looks)


def test_early_stopping_keeps_the_best_point(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that only make it worse: the start is the best look, two more end the training, and its weights stay."""
    settings = {**PAIRS, "batch_size": 8, "epochs": 8.0, "tau": 0.05, "learning_rate": 0.0}
    monkeypatch.setattr(
        watching.Watch, "measured", lambda self, logs: {"eval_loss": 1.0 + self.trainer.state.global_step}
    )
    config = dpo.Config(**{**settings, "learning_rate": 0.1}, eval_steps=2, validation=0.25, early_stopping=2)
    family = fit(dpo, config, reference=reference, weights=[MIXED], out=tmp_path, comparisons=rows_of(32))
    seen = looks_of(family)
    assert [look["step"] for look in seen["looks"]] == [0, 2, 4]
    assert seen["best_step"] == 0 and seen["kept_best"]
    kept, start = (load_model(path).state_dict() for path in (family.points[MIXED.label], reference))
    assert all(torch.equal(kept[name], start[name]) for name in start)


def test_sft_and_reward_models_look_at_their_validation_rows(reference: str, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["a"]} for row in rows_of(24)]
    config = SFTConfig_(max_steps=4, batch_size=4, save_steps=None, learning_rate=1e-3, eval_steps=2)
    metrics = sft(config, model=reference, rows=rows[:16], validation=rows[16:], out=tmp_path / "s", ledger=Ledger())
    looks = metrics["held_out"]["looks"]  # type: ignore[index]
    assert [look["step"] for look in looks] == [0, 2, 4] and metrics["trained_on"] == 16
    assert all(look["eval_bits_per_byte"] > 0 for look in looks)
    with pytest.raises(UserError, match="needs validation rows"):
        sft(config, model=reference, rows=rows, out=tmp_path / "none", ledger=Ledger())
    pairs = [{"prompt": row["prompt"], "chosen": row["a"], "rejected": row["b"]} for row in rows_of(24)]
    config = RewardModelConfig(max_steps=4, batch_size=4, save_steps=None, eval_steps=2, early_stopping=1)
    metrics = train_reward_model(
        config, model=reference, rows=pairs[:16], validation=pairs[16:], out=tmp_path / "rm", ledger=Ledger()
    )
    seen: Any = metrics["held_out"]
    assert seen["kept_best"] and "eval_accuracy" in seen["looks"][0] and metrics["trained_on"] == 16
    best = next(look for look in seen["looks"] if look["step"] == seen["best_step"])
    tokenizer = load_tokenizer(tmp_path / "rm" / "model")
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    saved = load_scorer(tmp_path / "rm" / "model", **tokens)
    assert preference_accuracy(saved, tokenizer, pairs[16:])["log_loss"] == pytest.approx(best["eval_loss"], abs=1e-4)
    assert metrics["log_loss"] is None  # rows that chose the point are no measure of it


def test_a_destroyed_language_model_is_named_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    look = watching.Watch(SimpleNamespace(), patience=0, folder=tmp_path, texts=[])  # type: ignore[arg-type]
    look._warn([{"step": 0, "eval_bits_per_byte": 1.0}, {"step": 5, "eval_bits_per_byte": 1.4}])
    assert capsys.readouterr().err == ""
    look._warn([{"step": 0, "eval_bits_per_byte": 1.0}, {"step": 5, "eval_bits_per_byte": 1.6}])
    said = capsys.readouterr().err
    assert "step 5: the language model is being destroyed (held-out prompts cost 1.6 bits per byte, 1 at the" in said
    look._warn([{"step": 0, "eval_bits_per_byte": 1.0}, {"step": 6, "eval_bits_per_byte": math.nan}])
    assert capsys.readouterr().err == ""
    look.memory["warned"] = False
    look._warn([{"step": 0}, {"step": 7, "eval_kl_of_responses": 120.0}])
    assert "the KL is 120 nats per response, above 100" in capsys.readouterr().err
