"""align.training.logs: a run keeps its curve, short ones too; trackers that are missing are named in one line."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from align.engines.settings import TrainingConfig, check_training
from align.errors import UserError
from align.methods import dpo, morlhf, ppo
from align.preferences import Weights
from align.runs import Ledger, open_run
from align.training import logs
from align.training import sft as stage
from align.training.common import StageConfig
from align.training.sft import SFTConfig_, sft
from factories.tiny_bandit import PAIRS, PROMPT_ROWS, RL, fit, pair_rows

MIXED = Weights((0.25, 0.75))


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "made", [lambda names: StageConfig(report_to=names), lambda names: TrainingConfig(report_to=names)]
)
def test_a_tracker_that_is_missing_or_unknown_is_one_line_with_the_remedy(made: Any, monkeypatch: Any) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"])

    def check(names: Any) -> None:
        config = made(names)
        if isinstance(config, TrainingConfig):
            check_training(config)

    check(())
    check(("tensorboard",))
    with pytest.raises(UserError, match="trackio is not installed; run `pip install trackio`"):
        check(("tensorboard", "trackio"))
    with pytest.raises(UserError, match="'wandbb' is no tracker; choose tensorboard, wandb, trackio"):
        check(("wandbb",))
    with pytest.raises(UserError, match="a list of trackers"):
        check("wandb")


def test_a_short_run_logs_ten_times_and_keeps_its_curve(reference: str, tmp_path: Path) -> None:
    config = dpo.Config(**{**PAIRS, "batch_size": 8, "epochs": 2.0, "logging_steps": 50})
    family = fit(dpo, config, reference=reference, weights=[MIXED], out=tmp_path, comparisons=pair_rows(80))
    point = Path(family.points[MIXED.label]).parent
    curve = [entry for entry in entries(point) if "loss" in entry]
    assert [entry["step"] for entry in curve] == list(range(2, 21, 2))  # 20 steps
    assert {entry["training"] for entry in curve} == {"dpo 0.25,0.75"}
    metrics = open_run(point).metrics
    assert metrics["loss"] == curve[-1]["loss"]
    assert metrics["accuracy"] == curve[-1]["rewards/accuracies"]
    assert metrics["margin"] == curve[-1]["rewards/margins"]


@pytest.mark.parametrize(("method", "changes"), [(morlhf, {}), (ppo, {"num_generations": 4})])
def test_each_objective_is_logged_plain_and_weighted(
    method: Any, changes: dict[str, Any], reference: str, tmp_path: Path
) -> None:
    config = method.Config(**{**RL, "steps": 3, "batch_size": 16, "num_generations": 4, "logging_steps": 50, **changes})
    family = fit(method, config, reference=reference, weights=[MIXED], out=tmp_path, prompts=PROMPT_ROWS)
    curve = [e for e in entries(Path(family.points[MIXED.label]).parent) if "loss" in e]
    assert [entry["step"] for entry in curve] == [1, 2, 3]
    for entry in curve:
        assert entry["rewards/one/weighted"] == pytest.approx(0.25 * entry["rewards/one/mean"], abs=1e-6)
        assert entry["rewards/two/weighted"] == pytest.approx(0.75 * entry["rewards/two/mean"], abs=1e-6)


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_a_resumed_run_has_the_curve_of_an_undisturbed_one(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["a"]} for row in pair_rows(24)]
    config = SFTConfig_(max_steps=6, batch_size=4, save_steps=2, logging_steps=1)

    def run(out: Path) -> None:
        sft(config, model=reference, rows=rows, out=out, ledger=Ledger())

    run(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        finish = stage.finish_trainer
        patch.setattr(stage, "finish_trainer", lambda trainer, **k: finish(trainer, **k).add_callback(Stop()))
        run(tmp_path / "again")
    with open(tmp_path / "again" / "log.jsonl", "a") as file:
        file.write('{"training": "other", "step": 1}\n{"half')  # another training's line stays, half a line goes
    run(tmp_path / "again")
    whole, again = entries(tmp_path / "whole"), entries(tmp_path / "again")
    assert again[0] == {"training": "other", "step": 1}
    losses = [[(e["step"], e["loss"]) for e in curve if "loss" in e] for curve in (whole, again)]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == [1, 2, 3, 4, 5, 6]


def test_a_number_that_is_not_finite_is_null() -> None:
    assert json.loads(logs.line("t", {"loss": float("nan"), "step": 3})) == {"training": "t", "step": 3, "loss": None}


def test_the_run_of_a_tracker_ends_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(finish=lambda: ended.append(True)))
    state = types.SimpleNamespace(is_world_process_zero=True)
    for names in (["wandb"], ["tensorboard"]):
        logs.CloseTrackers().on_train_end(types.SimpleNamespace(report_to=names), state)  # type: ignore[arg-type]
    assert ended == [True]
