"""Smoothed losses by hand, pairs matched by length, averages of reward models, and the command's new options."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import load_scorer, load_tokenizer, save_model
from align.objectives import RewardModelObjective, learned_reward
from align.policies.merging import average_scorers
from align.runs import run_stage
from align.training.cost_model import CostModelConfig
from align.training.reward_model import RewardModelConfig
from align.training.robust_pairs import SmoothedLoss, matched_by_length
from recipes.pipeline.objectives import COST_MODEL


class Plain:
    """Stands for RewardTrainer: -log sigmoid of margins."""

    def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Any:
        chosen_B, rejected_B = inputs["logits"].squeeze(-1).chunk(2)
        loss = -torch.nn.functional.logsigmoid(chosen_B - rejected_B).mean()
        return loss, SimpleNamespace(logits=inputs["logits"])


def test_the_smoothed_loss_by_hand() -> None:
    trainer: Any = type("Smoothed", (SmoothedLoss, Plain), {"smoothing": 0.2})()
    inputs = {"logits": torch.tensor([[2.0], [0.5], [1.0], [1.5]])}  # margins 1 and -1
    expected = sum(0.8 * math.log1p(math.exp(-m)) + 0.2 * math.log1p(math.exp(m)) for m in (1.0, -1.0)) / 2
    assert float(trainer.compute_loss(None, inputs)) == pytest.approx(expected)
    margins_N = torch.linspace(-3, 3, 601)
    losses = [0.8 * math.log1p(math.exp(-m)) + 0.2 * math.log1p(math.exp(m)) for m in margins_N.tolist()]
    assert margins_N[losses.index(min(losses))] == pytest.approx(math.log(0.8 / 0.2), abs=0.01)


def test_lengths_predict_nothing_once_matched() -> None:
    def pair(chosen: int, rejected: int, name: str) -> dict[str, Any]:
        return {"name": name, "chosen_ids": [1] * chosen, "rejected_ids": [1] * rejected}

    rows = [*[pair(5, 3, f"l{i}") for i in range(6)], *[pair(3, 5, f"s{i}") for i in range(2)], pair(4, 4, "e")]
    rows += [pair(9, 2, "only longer")]
    kept = matched_by_length(rows, seed=0)
    assert Counter(row["name"][0] for row in kept) == {"l": 2, "s": 2, "e": 1}
    assert [rows.index(row) for row in kept] == sorted(rows.index(row) for row in kept)
    assert matched_by_length(rows, seed=0) == kept
    with pytest.raises(UserError, match="no pairs are left"):
        matched_by_length([pair(5, 3, "l")], seed=0)


@pytest.fixture(scope="module")
def scorers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, tokenizer = tmp_path_factory.mktemp("scorers"), load_tokenizer(tiny_model)
    made = []
    for seed in (1, 2):
        model = load_scorer(tiny_model, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.score.weight)
        made.append(save_model(model, tokenizer, folder / f"scorer-{seed}"))
    return made


def test_an_average_of_heads_is_the_average_of_scores(scorers: list[Path], tmp_path: Path, tiny_model: Path) -> None:
    average_scorers(scorers, out=tmp_path / "model")
    prompts, replies = ["explain bread :", "say :"], [" sure", " x"]
    first, second, found = (RewardModelObjective(p)(prompts, replies) for p in (*scorers, tmp_path / "model"))
    expected = [(a + b) / 2 for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    assert found == pytest.approx(expected, abs=1e-4) and first != pytest.approx(second, abs=1e-2)
    with pytest.raises(UserError, match="no whole reward model"):
        average_scorers([scorers[0], tiny_model], out=tmp_path / "no")


def test_the_command_averages_solves_and_refuses(
    scorers: list[Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from recipes.commands.reward_model import main

    main(["--average", *map(str, scorers), "--out", str(tmp_path / "warm")])
    assert RewardModelObjective(tmp_path / "warm")(["say :"], [" x"])[0] is not None
    rows = [{"prompt": f"say {i} :", "chosen": " sure", "rejected": " sorry bread is clay"} for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(
        ["--pooled", "--model", str(tiny_model), "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "p")]
    )
    better, worse = learned_reward(tmp_path / "p")(["say 1 :"] * 2, [" sure", " sorry bread is clay"])
    assert better is not None and worse is not None and better > worse
    printed = capsys.readouterr()
    other = ["--pooled", "--model", str(tiny_model), "--data", str(tmp_path / "pairs.jsonl"), "--seed", "1"]
    with pytest.raises(UserError, match="seed"):  # other prompts are held out: another run
        main([*other, "--out", str(tmp_path / "p")])
    assert "evidence" in printed.out and "keys of training are not read" in printed.err
    for arguments, word in ((["--out", "x"], "--model and --data"), (["--average", "one"], "at least two")):
        with pytest.raises(UserError, match=word):
            main(arguments)


def test_cost_models_are_not_averaged_into_a_reward_model(scorers: list[Path], tmp_path: Path) -> None:
    """The average would be read as a reward model, whose sign is the other one."""
    from recipes.commands.reward_model import main

    cost = tmp_path / "cost"
    run_stage(cost, stage=COST_MODEL, config={}, body=lambda folder, ledger: {})
    with pytest.raises(UserError, match="is a cost model"):
        main(["--average", str(scorers[0]), str(cost), "--out", str(tmp_path / "warm")])


def test_options_are_checked() -> None:
    for share in (0.5, -0.1):
        with pytest.raises(UserError, match="label_smoothing"):
            RewardModelConfig(label_smoothing=share)
    with pytest.raises(UserError, match="no meaning for a cost model"):
        CostModelConfig(label_smoothing=0.1)
