"""Cost models: the sign of each term by hand, TRL's trainer against the formula, and zero as the learned boundary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from align.errors import UserError
from align.functional.losses import cost_loss
from align.models import load_scorer, load_tokenizer
from align.objectives import Negated, RewardModelObjective
from align.runs import Ledger
from align.training import cost_model, reward_model
from align.training.cost_model import (
    CostModelConfig,
    build_trainer,
    checked_pairs,
    cost_accuracy,
    train_cost_model,
    turned,
)
from align.training.reward_model import encoded
from factories.formulae import bradley_terry_loss

TOPICS = ("bread", "cheese", "tea", "boats", "rope", "glue", "knives", "bees")


def pair(topic: str, safer: str, other: str, labels: tuple[bool, bool]) -> dict[str, Any]:
    return {
        "prompt": f"explain {topic} :", "chosen": f" {safer}", "rejected": f" {other}", "safe_chosen": labels[0],
        "safe_rejected": labels[1],
    }  # fmt: skip


# refusing is safer than warning, which is safer than bragging, which is safer than shouting; the boundary lies between
# the second and the third
ROWS = [
    row
    for topic in TOPICS
    for row in (
        pair(topic, "sorry no", "careful with it", (True, True)),
        pair(topic, "careful with it", "sure do it", (True, False)),
        pair(topic, "sure do it", "YES DO IT NOW", (False, False)),
        pair(topic, "sorry no", "YES DO IT NOW", (True, False)),
    )
]


def loss_of(safer: float, unsafer: float, safe: tuple[bool, bool], **options: float) -> float:
    tensors = {"safer_is_safe_B": torch.tensor([safe[0]]), "unsafer_is_safe_B": torch.tensor([safe[1]])}
    costs = torch.tensor([safer], dtype=torch.float64), torch.tensor([unsafer], dtype=torch.float64)
    return cost_loss(costs[0], unsafer_B=costs[1], **tensors, **options).item()


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_cost_loss_by_hand() -> None:
    # -log sigmoid(3) = .0485874, -log sigmoid(1) = .3132617, -log sigmoid(2) = .1269280
    assert loss_of(-1.0, 2.0, (True, False)) == pytest.approx(0.0485874 + 0.3132617 + 0.1269280, abs=1e-6)
    # both unsafe: a cost of -1 is on the wrong side, -log sigmoid(-1) = 1.3132617
    assert loss_of(-1.0, 2.0, (False, False)) == pytest.approx(0.0485874 + 1.3132617 + 0.1269280, abs=1e-6)
    # both safe: a cost of 2 is on the wrong side, -log sigmoid(-2) = 2.1269280
    assert loss_of(-1.0, 2.0, (True, True)) == pytest.approx(0.0485874 + 0.3132617 + 2.1269280, abs=1e-6)
    # the order alone, turned round: -log sigmoid(-3) = 3.0485874
    assert loss_of(2.0, -1.0, (True, True)) == pytest.approx(3.0485874 + 2.1269280 + 0.3132617, abs=1e-6)
    # official mu = .001: the mean of 1 and 4
    assert loss_of(-1.0, 2.0, (True, False), square=0.1) == pytest.approx(0.4887771 + 0.1 * 2.5, abs=1e-6)
    with pytest.raises(ValueError, match="square"):
        loss_of(0.0, 0.0, (True, True), square=-1.0)


@pytest.mark.parametrize("safe", [(True, True), (True, False), (False, False)])
def test_zero_is_the_boundary(safe: tuple[bool, bool]) -> None:
    """At 0 the two sign terms push each cost to its own side with slope 1/2, the order with another 1/2."""
    costs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    flags = {"safer_is_safe_B": torch.tensor([safe[0]]), "unsafer_is_safe_B": torch.tensor([safe[1]])}
    cost_loss(costs[:1], unsafer_B=costs[1:], **flags).sum().backward()
    # minus the gradient: down for safe, up for unsafe; the safer one down, the other up
    push = [(-0.5 if is_safe else 0.5) + order for is_safe, order in zip(safe, (-0.5, 0.5), strict=True)]
    assert (-costs.grad).tolist() == pytest.approx(push)  # type: ignore[operator]


def test_the_loss_is_no_function_of_differences() -> None:
    """Bradley-Terry cannot tell where 0 is; this can. (Never z-score a cost.)"""
    shifts = [loss_of(-1.0 + c, 2.0 + c, (True, False)) for c in (0.0, 5.0)]
    plain = [bradley_terry_loss(torch.tensor(2.0 + c), rejected_B=torch.tensor(-1.0 + c)).item() for c in (0.0, 5.0)]
    assert plain[0] == pytest.approx(plain[1], abs=1e-6) and shifts[1] > shifts[0] + 3
    # with an order term that is exact, the best common shift of -1 and 2 labelled safe and unsafe is their middle
    best = min((loss_of(-1.0 + c, 2.0 + c, (True, False)), c) for c in (-1.0, -0.75, -0.5, -0.25, 0.0))
    assert best[1] == -0.5


# -------------------------------------------------------------------------------------------------------- the trainer


def trainer_of(tiny_model: Path, folder: Path, **changes: Any) -> tuple[Any, Any]:
    config = CostModelConfig(**{"batch_size": 32, "max_steps": 1, "save_steps": None, "seed": 1, **changes})
    tokenizer = load_tokenizer(tiny_model)
    scorer = load_scorer(tiny_model, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    scorer.score.weight.data.normal_()
    pairs = encoded(checked_pairs(ROWS), tokenizer, None).rows
    return build_trainer(config, scorer=scorer, tokenizer=tokenizer, pairs=pairs, out=folder), tokenizer


def test_trl_minimises_the_cost_loss_with_each_label_at_its_own_response(tiny_model: Path, tmp_path: Path) -> None:
    """Contract with TRL: label columns reach the batch, chosen comes first, what `compute_loss` returns is trained."""
    trainer, tokenizer = trainer_of(tiny_model, tmp_path, square=0.25)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["safe"].shape == (2, 32) and batch["input_ids"].shape[0] == 64
    trainer.model.eval()
    with torch.no_grad():
        costs = (
            trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()
        )
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()
        again, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    answers = [text.split(" : ")[1] for text in texts]
    unsafe = {"sorry no": False, "careful with it": False, "sure do it": True, "YES DO IT NOW": True}
    total = 0.0
    for i in range(32):
        high, low = costs[i], costs[32 + i]
        assert {"prompt": texts[i].split(" :")[0] + " :", "chosen": " " + answers[32 + i]}.items() <= {
            k: v for row in ROWS if row["rejected"] == " " + answers[i] and row["chosen"] == " " + answers[32 + i]
            and row["prompt"] in texts[i] for k, v in row.items()
        }.items()  # fmt: skip
        total += softplus(-(high - low)) + 0.25 * (high**2 + low**2) / 2
        for cost, answer in ((high, answers[i]), (low, answers[32 + i])):
            total += softplus(-cost if unsafe[answer] else cost)
    assert loss == pytest.approx(total / 32, abs=1e-4) == again.item()
    assert outputs.logits.shape == (64, 1)


def test_the_trained_cost_is_negative_exactly_where_safe(tiny_model: Path, tmp_path: Path) -> None:
    config = CostModelConfig(max_steps=40, learning_rate=5e-3, batch_size=16, save_steps=None)
    ledger = Ledger()
    metrics = train_cost_model(
        config, model=tiny_model, rows=ROWS[:24], validation=ROWS[24:], out=tmp_path, ledger=ledger
    )
    assert metrics["accuracy"] == metrics["sign_accuracy"] == 1.0 == metrics["train_sign_accuracy"]
    assert metrics["log_loss"] < 1.0 < 3 * math.log(2)
    assert (metrics["trained_on"], metrics["too_long"], metrics["steps"]) == (24, 0, 40) and ledger.tokens > 0
    cost = RewardModelObjective(tmp_path, name="cost")
    harmless = Negated(cost, name="harmless")
    for row in ROWS:
        safer, other = cost([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        assert safer < other and (safer < 0) == row["safe_chosen"] and (other < 0) == row["safe_rejected"]
        assert harmless([row["prompt"]], [row["chosen"]]) == [pytest.approx(-safer, abs=1e-4)]  # higher is better


def test_an_adapter_is_trained_and_merged(tiny_model: Path, tmp_path: Path) -> None:
    config = CostModelConfig(max_steps=40, learning_rate=2e-2, batch_size=16, save_steps=None, lora_r=4)
    metrics = train_cost_model(config, model=tiny_model, rows=ROWS, validation=ROWS, out=tmp_path, ledger=Ledger())
    assert metrics["sign_accuracy"] > 0.9
    assert not (tmp_path / "model" / "adapter_config.json").exists()


def test_accuracies_by_hand(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {" a": -1.0, " b": 2.0, " c": 0.0}
    monkeypatch.setattr(cost_model, "score", lambda model, tokenizer, prompts, texts: [costs[t] for t in texts])
    pairs = [
        pair("x", "a", "b", (True, False)),  # order right, both sides right
        pair("x", "b", "a", (True, True)),  # order wrong, one side wrong
        pair("x", "c", "c", (True, False)),  # a tie, both sides on the boundary
    ]
    found = cost_accuracy(None, None, pairs)
    assert found["accuracy"] == pytest.approx(1.5 / 3) and found["n"] == 3
    assert found["sign_accuracy"] == pytest.approx((2 + 1 + 1) / 6)
    by_hand = [softplus(-3) + softplus(-1) + softplus(-2), softplus(3) + softplus(2) + softplus(-1), 3 * math.log(2)]
    assert found["log_loss"] == pytest.approx(sum(by_hand) / 3)


def test_an_interrupted_cost_model_resumes_to_the_same_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best epoch by accuracy of the order is kept over the interruption, too."""
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 2e-3, "save_steps": 2, "choose_epoch": True}

    def call(name: str) -> dict[str, Any]:
        out = tmp_path / name
        config = CostModelConfig(**settings)  # type: ignore[arg-type]
        return train_cost_model(config, model=tiny_model, rows=ROWS, validation=ROWS, out=out, ledger=Ledger())

    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    whole = call("whole")
    finish = reward_model.finish_trainer
    with monkeypatch.context() as patch:
        patch.setattr(
            reward_model,
            "finish_trainer",
            lambda trainer, **k: (trainer.add_callback(Interrupt()), finish(trainer, **k))[1],
        )
        with pytest.raises(KeyboardInterrupt):
            call("cut")
    cut = call("cut")
    assert cut == whole and whole["epoch"] is not None
    first, second = (
        load_scorer(tmp_path / name / "model", pad_token_id=0, eos_token_id=1).state_dict() for name in ("whole", "cut")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


# ----------------------------------------------------------------------------------------------------------- the rows


def test_rows_are_turned_into_the_order_of_scores() -> None:
    row = pair("tea", "sorry no", "sure do it", (True, False))
    (turned_row,) = turned([row])
    assert turned_row == {
        "prompt": row["prompt"], "chosen": " sure do it", "rejected": " sorry no", "safe_chosen": False,
        "safe_rejected": True,
    }  # fmt: skip
    assert turned([turned_row]) == [row]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": None}, "comparison row 1 has no chosen"),
        ({"safe_chosen": None}, "row 1: safe_chosen is None; say true or false"),
        ({"safe_rejected": "no"}, "row 1: safe_rejected is 'no'"),
        ({"safe_chosen": False, "safe_rejected": True}, "chosen must be the safer"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str, tiny_model: Path) -> None:
    row = {**pair("tea", "sorry no", "sure do it", (True, False)), **changes}
    with pytest.raises(UserError, match=message):
        checked_pairs([row])


def test_long_pairs_are_left_out_and_counted(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    long = {**ROWS[0], "rejected": " tea" * 50}
    found = encoded(checked_pairs([ROWS[0], long]), tokenizer, 48)
    assert len(found.rows) == found.too_long == 1
    with pytest.raises(UserError, match="none of the 1 comparisons fits"):
        encoded(checked_pairs([long]), tokenizer, 48)


def test_options_that_would_move_the_boundary_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="move a cost model's boundary"):
        CostModelConfig(center=0.1)
    with pytest.raises(UserError, match="square must be at least 0"):
        CostModelConfig(square=-0.1)
    with pytest.raises(UserError, match="choose_epoch needs validation"):
        train_cost_model(CostModelConfig(choose_epoch=True), model=tiny_model, rows=ROWS, out=tmp_path, ledger=Ledger())
