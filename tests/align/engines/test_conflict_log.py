"""Conflict logged while training: worked examples and real trainers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from align.engines.on_policy import trainer as onpolicy
from align.engines.on_policy.conflict_log import AS_USED, WITH_KL, WITHOUT_KL, Kept, attach, centred_sum
from align.engines.on_policy.weight_control import controlled_trainer
from align.functional import conflict
from align.methods import conditioned_rl, ctwa, morlhf
from align.objectives.metered import Metered
from align.preferences import Weights
from align.runs import Ledger, checkpoints, open_run
from factories.made_conflict_log import AGAINST, ONE, Opposed
from factories.oracles import advantage_covariance
from factories.tiny_bandit import OBJECTIVES, RL, problem_of, workspace

BOTH = pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
SHORT = {**RL, "steps": 4, "batch_size": 24, "num_generations": 4, "logging_steps": 1}


# ------------------------------------------------------------------------------------------------- equal groups, pure


def test_groups_give_what_the_complete_tables_give() -> None:
    rewards_PSK = np.random.default_rng(0).integers(0, 4, (7, 5, 3)).astype(float)  # with ties
    rewards_PSK[0, :, 1] = 2.0  # constant on one prompt
    advantages_PS = np.random.default_rng(1).normal(size=(7, 5))
    one, other = conflict.rank_correlation(list(rewards_PSK)), conflict.rank_correlation_of_groups(rewards_PSK)
    np.testing.assert_allclose(other.values_KK, one.values_KK, atol=1e-12)
    assert (other.n_KK == one.n_KK).all() and other.n_KK[1, 1] == 6
    expected = advantage_covariance(list(rewards_PSK), advantages_PS=list(advantages_PS))
    np.testing.assert_allclose(
        conflict.covariance_of_groups(rewards_PSK, advantages_PS=advantages_PS), expected, atol=1e-12
    )


def test_groups_leave_out_what_does_not_apply() -> None:
    """Both quantities on the samples that apply, not with nan as a 0; nothing is left of a third objective."""
    nan = math.nan
    rewards = [[[0.0, nan, nan], [1.0, 5.0, nan], [2.0, 3.0, nan]], [[0.0, nan, nan], [2.0, nan, nan], [4.0, 1.0, nan]]]
    matrix = conflict.rank_correlation_of_groups(rewards)
    assert matrix.values_KK[0, 1] == matrix.values_KK[1, 0] == -1.0 and matrix.n_KK[0, 1] == 1
    assert np.isnan(matrix.values_KK[2]).all() and (matrix.n_KK[2] == 0).all()
    found = conflict.covariance_of_groups(rewards, advantages_PS=[[9.0, 0.0, 4.0], [-1.0, 0.0, 1.0]])
    # k = 0: prompt 1 (-1 * 14/3 + 0 - 1/3) / 2, prompt 2 (-2 * -1 + 0 + 2 * 1) / 2. k = 1: 1 * -2 + -1 * 2 over 1.
    assert found[0] == pytest.approx((-2.5 + 2.0) / 2)
    assert found[1] == pytest.approx((1.0 * -2.0 + -1.0 * 2.0) / 1) and math.isnan(found[2])


@pytest.mark.parametrize("shape", [(2, 3), (0, 3, 2), (2, 1, 2)])
def test_groups_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rewards_PSK"):
        conflict.rank_correlation_of_groups(np.zeros(shape))
    with pytest.raises(ValueError, match="advantages_PS"):
        conflict.covariance_of_groups(np.zeros((2, 3, 1)), advantages_PS=np.zeros((3, 2)))


# --------------------------------------------------------------------------------------------- a trainer made by hand


class FakeTrainer:
    """What the callback reads of a trainer: two prompts with three samples each, scores and weights given."""

    def __init__(self, scores: dict[str, list[float | None]], weights: Sequence[float], group: int = 3) -> None:
        self.reward_funcs: list[Any] = []
        for name, values in scores.items():
            metered = Metered(name, lambda *a, values=values, **c: values, Ledger())
            self.reward_funcs.append(metered)
        self.reward_weights, self.num_generations = torch.tensor(weights), group
        self.accelerator = SimpleNamespace(device="cpu", gather=lambda tensor: tensor)
        self.callbacks: list[Any] = []
        self.state = SimpleNamespace(global_step=0, max_steps=2, stateful_callbacks={})

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def step(self) -> None:
        for callback in self.callbacks:
            callback.on_step_begin(None, self.state, None)
        for function in self.reward_funcs:
            function(["x"] * 6, ["y"] * 6)
        self.state.global_step += 1
        for callback in self.callbacks:
            callback.on_step_end(None, self.state, None)


SCORES: dict[str, list[float | None]] = {"one": [0.0, 1.0, 2.0, 0.0, 0.0, 3.0], "two": [4.0, 4.0, 0.0, 1.0, 0.0, 0.0]}


def test_an_entry_is_what_was_derived_by_hand() -> None:
    """w = (0.25, 0.75). Rewards of prompt 1: 3, 3.25, 0.5, centred 0.75, 1, -1.75; of prompt 2: 0.75, 0, 0.75, centred
    0.25, -0.5, 0.25. Covariances with one, centred -1, 0, 1 and -1, -1, 2, over S - 1 = 2: -1.25 and 0.375. With two,
    centred 4/3, 4/3, -8/3 and 2/3, -1/3, -1/3: 3.5 and 0.125. tau-b on prompt 1: one decides 3 pairs, two 2 of them,
    both discordant: -2 / sqrt(3 * 2); on prompt 2 each decides 2, one in common and discordant: -1 / 2.
    """
    trainer = FakeTrainer(SCORES, (0.25, 0.75))
    log = attach(trainer)
    assert log is not None and trainer.callbacks == [log]
    trainer.step()
    report = log.report()
    (entry,) = report["trace"]
    assert entry["covariance"] == pytest.approx([(-1.25 + 0.375) / 2, (3.5 + 0.125) / 2])
    assert entry["rank_correlation"] == pytest.approx([(-2 / math.sqrt(6) - 0.5) / 2]) and entry["step"] == 1
    assert (report["names"], report["pairs"], report["advantage"]) == (["one", "two"], [["one", "two"]], WITHOUT_KL)


def test_opposed_objectives_have_the_smaller_weight_trained_down() -> None:
    """Sign and argument order: whichever weighs less has the negative entry."""
    scores = {"one": SCORES["one"], "against": [-s for s in SCORES["one"] if s is not None]}
    for weights, signs in (((0.75, 0.25), [1, -1]), ((0.25, 0.75), [-1, 1])):
        trainer = FakeTrainer(scores, weights)  # type: ignore[arg-type]
        log = attach(trainer)
        trainer.step()
        assert log is not None
        (entry,) = log.report()["trace"]
        assert np.sign(entry["covariance"]).tolist() == signs and entry["rank_correlation"] == [-1.0]


def test_the_weights_are_those_of_the_step_though_a_controller_moves_them_at_its_end() -> None:
    trainer = FakeTrainer(SCORES, (0.25, 0.75))

    class Mover:
        def on_step_begin(self, *_: Any) -> None: ...

        def on_step_end(self, *_: Any) -> None:
            trainer.reward_weights = torch.tensor([5.0, -5.0])

    trainer.add_callback(Mover())
    log = attach(trainer)
    trainer.step()
    assert log is not None and log.report()["trace"][0]["covariance"][1] == pytest.approx((3.5 + 0.125) / 2)


def test_three_objectives_have_three_pairs_and_one_that_does_not_apply_is_no_number() -> None:
    nan = math.nan
    trainer = FakeTrainer({**SCORES, "never": [None] * 6}, (0.25, 0.75, 1.0))
    log = attach(trainer)
    trainer.step()
    assert log is not None
    report = log.report()
    assert report["pairs"] == [["one", "two"], ["one", "never"], ["two", "never"]]
    (entry,) = report["trace"]
    assert entry["covariance"][:2] == pytest.approx([-0.4375, 1.8125]) and entry["covariance"][2] is None
    assert entry["rank_correlation"][1:] == [None, None]
    # the first function's mean is 2; the second scores one sample only, so that there is nothing to compare
    assert centred_sum(np.array([[1.0, nan], [3.0, nan], [nan, 4.0]]), weights_F=(1, 0.5), group=3).tolist() == [
        -1.0, 1.0, 0.0,
    ]  # fmt: skip


def test_a_long_run_is_averaged_over_windows_and_a_resumed_one_goes_on() -> None:
    """120 steps in windows of 3; the sums come back from what a checkpoint holds, as JSON, also within a window."""

    def play(trainer: FakeTrainer, steps: int) -> None:
        for _ in range(steps):
            one = trainer.reward_funcs[0]
            at = trainer.state.global_step
            one.objective = lambda *a, at=at, **c: [at * s for s in SCORES["one"] if s is not None]
            trainer.step()

    whole = FakeTrainer(SCORES, (0.0, 1.0))
    whole.state.max_steps = 120
    log = attach(whole)
    assert log is not None
    play(whole, 120)
    trace = log.report()["trace"]
    assert len(trace) == 40 and [entry["step"] for entry in trace[:2]] == [3, 6]
    each = (-2.0 - 0.5) / 2  # cov(one, two): prompt 1 (-4/3 - 8/3) / 2, prompt 2 (-2/3 + 1/3 - 2/3) / 2
    assert trace[1]["covariance"][0] == pytest.approx(each * (3 + 4 + 5) / 3)
    first = FakeTrainer(SCORES, (0.0, 1.0))
    first.state.max_steps = 120
    before = attach(first)
    play(first, 61)
    assert before is not None
    second = FakeTrainer(SCORES, (0.0, 1.0))
    second.state = SimpleNamespace(
        global_step=61, max_steps=120, stateful_callbacks={"ConflictLog": json.loads(json.dumps(before.state()))}
    )
    after = attach(second)
    assert after is not None
    after.on_train_begin(None, second.state, None)
    play(second, 59)
    assert after.report() == log.report()
    after.on_train_begin(None, SimpleNamespace(stateful_callbacks={}), None)  # a checkpoint without an entry: no error


def test_one_objective_logs_nothing() -> None:
    trainer = FakeTrainer({"one": SCORES["one"]}, (1.0,))
    assert attach(trainer) is None and not trainer.callbacks


# ------------------------------------------------------------------------------------------------------ real trainers


def trained(reference: str, folder: Path, *, objectives: Any = OBJECTIVES, **changes: Any) -> tuple[dict, Ledger, Any]:
    config = morlhf.Config(**{**SHORT, **changes})
    ledger = Ledger()
    weights = Weights((0.3, 0.7) if len(objectives) == 2 else (0.2, 0.3, 0.5))
    trainer = morlhf.build_trainer(
        config,
        problem_of(reference, objectives=objectives),
        workspace(folder, ledger),
        weights=weights,
    )
    return onpolicy.run_trainer(trainer, label="test", folder=folder, ledger=ledger), ledger, trainer


@BOTH
def test_nothing_is_asked_twice_and_training_is_the_same(
    algorithm: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_log, ledger, trainer = trained(reference, tmp_path / "with", algorithm=algorithm)
    assert ledger.scores_read == 4 * 24 * 2  # steps x completions x objectives
    monkeypatch.setattr("align.engines.on_policy.conflict_log.attach", lambda trainer: None)
    without, other, plain = trained(reference, tmp_path / "without", algorithm=algorithm)
    assert "conflict" not in without and {k: v for k, v in with_log.items() if k != "conflict"} == without
    for name in ("scores_read", "samples_drawn", "tokens", "flops"):
        assert getattr(ledger, name) == getattr(other, name)
    pairs = zip(trainer.model.parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    report = with_log["conflict"]
    assert [entry["step"] for entry in report["trace"]] == [1, 2, 3, 4]
    assert report["advantage"] == (WITH_KL if algorithm == "grpo" else WITHOUT_KL)
    json.dumps(report, allow_nan=False)


@BOTH
def test_the_advantage_is_the_trainers_own(algorithm: str, reference: str, tmp_path: Path) -> None:
    """Against the tensor that TRL's loss multiplies. GRPO's is the centred reward with the KL; at the first step
    RLOO's, S / (S - 1) times as large, has no KL yet, since the policy still is the reference.
    """
    seen: list[Any] = []
    config = morlhf.Config(**{**SHORT, "algorithm": algorithm, "steps": 3 if algorithm == "grpo" else 1})
    trainer = morlhf.build_trainer(
        config,
        problem_of(reference),
        workspace(tmp_path),
        weights=Weights((0.3, 0.7)),
    )
    plain = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: seen.append(plain(inputs)) or seen[-1]
    log = attach(trainer)
    assert log is not None
    ours: list[np.ndarray] = []
    observe = log._observe
    log._observe = lambda: ours.append(observe()[1]) or observe()  # type: ignore[method-assign,func-returns-value]
    trainer.train()
    scale = 3 / 4 if algorithm == "rloo" else 1.0
    assert len(ours) == len(seen) == config.steps
    for mine, output in zip(ours, seen, strict=True):
        np.testing.assert_allclose(mine, scale * output["advantages"].numpy(), atol=1e-5)
    assert np.abs(ours[-1]).max() > 0.1


def test_where_the_trainer_keeps_its_advantages_they_are_read(reference: str, tmp_path: Path) -> None:
    config = ctwa.Config(**{**SHORT, "steps": 1, "num_generations": 12})
    rule = ctwa.Growth((0.5, 0.5), (0.1, 0.1), 0.05, 0.9, "covariance", True)
    trainer, _ = controlled_trainer(config, problem_of(reference), workspace(tmp_path), rule=rule)
    report = onpolicy.run_trainer(trainer, label="test", folder=tmp_path, ledger=Ledger())["conflict"]
    scores_PSK = np.array([function.last for function in trainer.reward_funcs]).T.reshape(2, 12, 2)
    kept_PS = trainer.latest_advantages.numpy().reshape(2, 12)
    expected = advantage_covariance(list(scores_PSK), advantages_PS=list(kept_PS))
    assert report["trace"][0]["covariance"] == pytest.approx(expected.tolist()) and report["advantage"] == AS_USED


def test_with_the_rows_own_weights_the_sum_is_the_trainers(reference: str, tmp_path: Path) -> None:
    """Conditioned training hides its objectives in one weighted sum: they are found, and asked once."""
    ledger = Ledger()
    config = conditioned_rl.Config(**{**SHORT, "steps": 2})
    problem = problem_of(reference, objectives=AGAINST, preferences=[Weights((0.5, 0.5))])
    family = conditioned_rl.fit(config, problem, workspace(tmp_path, ledger))
    assert family and ledger.scores_read == 2 * 24 * 2
    report = open_run(tmp_path / "conditioned").metrics["conflict"]
    assert report["names"] == ["one", "against"] and report["advantage"] == WITH_KL
    assert all(entry["rank_correlation"] == [-1.0] for entry in report["trace"])
    one, against = report["trace"][0]["covariance"]
    assert one == pytest.approx(-against)


def test_a_point_of_three_objectives_and_one_of_a_vertex(reference: str, tmp_path: Path) -> None:
    third = {**OBJECTIVES, "against": Opposed("against", ONE)}
    metrics, _, _ = trained(reference, tmp_path / "three", objectives=third, steps=2)
    trace = metrics["conflict"]["trace"]
    assert all(entry["covariance"][2] == pytest.approx(-entry["covariance"][0]) for entry in trace)
    config = morlhf.Config(**{**SHORT, "steps": 1})
    problem = problem_of(reference, preferences=[Weights((0.0, 1.0)), Weights((0.5, 0.5))])
    family = morlhf.fit(config, problem, workspace(tmp_path / "family"))
    assert set(family.points) == {"0,1", "0.5,0.5"}
    assert "conflict" not in open_run(tmp_path / "family" / "points" / "0,1").metrics
    assert open_run(tmp_path / "family" / "points" / "0.5,0.5").metrics["conflict"]["names"] == ["one", "two"]


def test_a_resumed_training_keeps_the_trace(reference: str, tmp_path: Path) -> None:
    whole, _, _ = trained(reference, tmp_path / "whole")
    config = morlhf.Config(**{**SHORT, "save_steps": 2})

    def build(folder: Path) -> Any:
        return morlhf.build_trainer(
            config,
            problem_of(reference),
            workspace(folder),
            weights=Weights((0.3, 0.7)),
        )

    class Cut(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 2

    cut = build(tmp_path / "cut")
    attach(cut)
    cut.add_callback(Cut())
    checkpoints.claim(tmp_path / "cut" / "checkpoints")  # as `run_trainer` does before it trains
    cut.train()
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-2").is_dir()
    resumed = onpolicy.run_trainer(build(tmp_path / "cut"), label="x", folder=tmp_path / "cut", ledger=Ledger())
    assert [entry["step"] for entry in resumed["conflict"]["trace"]] == [1, 2, 3, 4]
    assert resumed["conflict"] == whole["conflict"]


def test_kept_scores_pass_through() -> None:
    def plain(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        return [columns["x"]] * len(prompts)

    kept = Kept(plain)
    assert kept(["p"], ["c"], x=2.0) == [2.0] == kept.last and kept.__name__ == "plain"
