"""Weights that move: the callback against the trainer, and what the methods on it have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.engines.on_policy.weight_control import Observed, WeightControl, controlled_trainer, smoothed
from align.errors import UserError
from align.methods import chebyshev, ctwa, lagrangian, morlhf
from align.methods.ctwa import Growth
from align.objectives.metered import Metered
from align.preferences import Thresholds, Weights
from align.runs import Ledger, open_run
from factories.formulae import rloo_advantages
from factories.tiny_bandit import (
    OBJECTIVES,
    PROMPT_ROWS,
    RL,
    fit,
    problem_of,
    same_weights,
    workspace,
)

BOTH = pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
SHORT = {**RL, "steps": 3, "batch_size": 24, "num_generations": 4, "logging_steps": 1}


class Script:
    """A rule that plays given weights, one pair after each step, and keeps what it observed."""

    def __init__(self, *weights: tuple[float, ...], reads_advantages: bool = False) -> None:
        self.script, self.reads_advantages, self.observed = weights, reads_advantages, []  # type: ignore[var-annotated]

    def start(self) -> dict[str, Any]:
        return {"at": 0}

    def step(self, memory: dict[str, Any], observed: Observed) -> dict[str, Any]:
        self.observed.append(observed)
        return {"at": memory["at"] + 1}

    def weights(self, memory: dict[str, Any]) -> Sequence[float]:
        return self.script[min(memory["at"], len(self.script) - 1)]

    def report(self, memory: dict[str, Any]) -> dict[str, Any]:
        return dict(memory)


def controlled(reference: str, folder: Path, rule: Any, *, objectives: Any = OBJECTIVES, **changes: Any) -> Any:
    config = chebyshev.Config(**{**SHORT, **changes})
    return controlled_trainer(config, problem_of(reference, objectives=objectives), workspace(folder), rule=rule)


def train(module: Any, config: Any, *, reference: str, out: Path, weights: Any, **data: Any) -> tuple[str, dict]:
    family = fit(module, config, reference=reference, weights=[weights], out=out, prompts=PROMPT_ROWS, **data)
    return family.points[weights.label], open_run(out / "points" / weights.label).metrics


# ------------------------------------------------------------------------------------------------------ what is seen


def test_means_leave_out_what_does_not_apply() -> None:
    """None is no score of 0: the mean of 1 and 3 is 2, whatever the third completion is."""
    observed = Observed(np.array([[1.0, math.nan], [3.0, math.nan], [math.nan, math.nan]]), group=3)
    assert observed.means_K == [2.0, None]


def test_the_moving_average_starts_at_the_first_value() -> None:
    first = smoothed(None, [4.0, None], decay=0.9)
    assert first == [4.0, None]  # no pull towards 0
    second = smoothed(first, [2.0, 5.0], decay=0.75)
    assert second == [0.75 * 4 + 0.25 * 2, 5.0]
    assert smoothed(second, [None, 1.0], decay=0.75) == [3.5, 0.75 * 5 + 0.25 * 1]


# ---------------------------------------------------------------------------------------------- callback and trainer


@BOTH
def test_each_step_is_rewarded_with_the_weights_set_after_the_one_before(
    algorithm: str, reference: str, tmp_path: Path
) -> None:
    """trl#5352 logged the unweighted sum; here the log must be the current weights times that batch's means."""
    rule = Script((0.25, 0.75), (2.0, 0.0), (0.0, 3.0), (5.0, 5.0))
    trainer, control = controlled(reference, tmp_path, rule, algorithm=algorithm)
    assert trainer.reward_weights[:2].tolist() == [0.25, 0.75]
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == len(rule.observed) == 3
    for entry, (one, two), observed in zip(logged, rule.script, rule.observed, strict=False):
        means = observed.means_K
        assert means == pytest.approx([entry["rewards/one/mean"], entry["rewards/two/mean"]], abs=1e-6)
        kl = entry.get("rewards/sequence_kl/mean", 0.0)  # with RLOO the KL is in the advantage, not in this log
        assert entry["reward"] == pytest.approx(one * means[0] + two * means[1] - 0.5 * kl, abs=1e-5)
    assert trainer.reward_weights[:2].tolist() == [5.0, 5.0]
    if algorithm == "grpo":  # the KL's weight stays
        assert trainer.beta == 0.0 and trainer.reward_weights[2:].tolist() == [-0.5]
    else:
        assert trainer.beta == 0.5
    assert [point["weights"] for point in control.report()["trace"]] == [[2.0, 0.0], [0.0, 3.0], [5.0, 5.0]]
    assert control.report()["weights"] == {"one": 5.0, "two": 5.0} and control.report()["at"] == 3


@BOTH
def test_the_advantages_kept_are_those_of_the_scores_in_their_order(
    algorithm: str, reference: str, tmp_path: Path
) -> None:
    """At the first step the policy is the reference: no KL, so advantages follow from the weighted scores alone."""
    rule = Script((0.25, 0.75), reads_advantages=True)
    trainer, _ = controlled(
        reference, tmp_path, rule, algorithm=algorithm, steps=1, batch_size=12, gradient_accumulation=2
    )
    trainer.train()
    (observed,) = rule.observed
    assert observed.scores_BK.shape == (24, 2) and observed.group == 4
    total = torch.tensor(observed.scores_BK @ np.array([0.25, 0.75])).reshape(-1, 4)
    assert total.std(1).max() > 0.1
    baseline = rloo_advantages(total) if algorithm == "rloo" else total - total.mean(1, keepdim=True)
    assert observed.advantages_B == pytest.approx(baseline.flatten().numpy(), abs=1e-5)


def test_an_objective_that_applies_to_some_prompts_weighs_by_its_share(reference: str, tmp_path: Path) -> None:
    """TRL adds nothing where it does not apply: half the prompts make half the gradient, so the weight is doubled."""

    def only_x(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        scores = OBJECTIVES["two"](prompts, completions, **columns)
        return [score if prompt == "x :" else None for prompt, score in zip(prompts, scores, strict=True)]

    rule = Script((0.25, 0.75))
    trainer, control = controlled(reference, tmp_path, rule, objectives={"one": OBJECTIVES["one"], "two": only_x})
    assert trainer.reward_weights.tolist() == [0.25, 0.75]  # nothing is known yet
    trainer.train()
    share = np.mean([np.isfinite(observed.scores_BK[:, 1]).mean() for observed in rule.observed])
    assert 0.3 < share < 0.7
    assert trainer.reward_weights.tolist() == pytest.approx([0.25, 0.75 / share])
    assert control.weights() == [0.25, 0.75]


def test_the_controlled_objectives_must_be_the_first_reward_functions(reference: str, tmp_path: Path) -> None:
    trainer, _ = controlled(reference, tmp_path, Script((0.5, 0.5)))
    others = [Metered(name, objective, Ledger()) for name, objective in OBJECTIVES.items()]
    with pytest.raises(ValueError, match="first reward functions"):
        WeightControl(trainer, objectives=others, rule=Script((0.5, 0.5)))
    with pytest.raises(ValueError, match="first reward functions"):
        WeightControl(trainer, objectives=trainer.reward_funcs[::-1], rule=Script((0.5, 0.5)))


def test_a_checkpoint_keeps_the_memory_of_its_step(reference: str, tmp_path: Path) -> None:
    """Contract with the Trainer: `on_step_end` comes before the checkpoint, whose state holds exported callbacks."""
    rule = Script((1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0))
    trainer, control = controlled(reference, tmp_path, rule, save_steps=2)
    trainer.train()
    saved = json.loads((tmp_path / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
    memory = saved["stateful_callbacks"]["WeightControl"]["attributes"]["memory"]
    assert memory["rule"] == {"at": 2} and memory["seen"] == 48 and memory["applied"] == [48, 48]
    again, resumed = controlled(reference, tmp_path, rule)
    assert again.reward_weights.tolist() == [1.0, 1.0]
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    assert resumed.memory == control.memory
    logged = [entry["reward"] / entry["rewards/one/mean"] for entry in again.state.log_history if "reward" in entry]
    assert len(logged) == 3 and resumed.memory["rule"] == {"at": 3}


METHODS = {
    "chebyshev": (chebyshev, {"ideal": (1.0, 1.0), "smooth": 0.1}, Weights((0.4, 0.6))),
    "ctwa": (ctwa, {"weight_rate": 1.0, "targets": (0.9,)}, Weights((0.4, 0.6))),
    "lagrangian": (lagrangian, {"dual_rate": 2.0}, Thresholds((None, 0.6))),
}


class Interrupting:
    """An objective that works `calls` times and then stands for a killed process."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return OBJECTIVES["one"](prompts, completions, **columns)


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_resumes_to_the_same_weights(name: str, reference: str, tmp_path: Path) -> None:
    """trl.md: `reward_weights` are no part of a checkpoint of TRL's."""
    module, settings, preference = METHODS[name]
    config = module.Config(**{**SHORT, "steps": 5, "save_steps": 2, **settings})
    data = {"reference": reference, "weights": preference}
    whole, expected = train(module, config, out=tmp_path / "whole", **data)
    with pytest.raises(KeyboardInterrupt):
        train(module, config, out=tmp_path / "cut", objectives={**OBJECTIVES, "one": Interrupting(4)}, **data)
    assert list((tmp_path / "cut").rglob("checkpoint-4"))
    cut, metrics = train(module, config, out=tmp_path / "cut", **data)
    assert same_weights(whole, cut)
    assert metrics["trace"] == expected["trace"] and metrics["weights"] == expected["weights"]
    assert len(metrics["trace"]) == 5
    assert expected["trace"][0]["weights"] != expected["trace"][3]["weights"]  # there was something to restore


@pytest.mark.parametrize("name", ["chebyshev", "ctwa"])  # lagrangian: see its own tests
def test_three_objectives_with_one_unused_are_two(name: str, reference: str, tmp_path: Path) -> None:
    """MOD's hard-coded index of a third model, RiC's fixed weights for three: K = 3 is where published code breaks."""
    module, settings, preference = METHODS[name]

    def never(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        raise AssertionError("an objective of weight 0 was asked")

    two, _ = train(
        module, module.Config(**SHORT, **settings), reference=reference, out=tmp_path / "2", weights=preference
    )
    wide = {key: (*value, 7.0) if key in ("ideal",) else value for key, value in settings.items()}
    three, _ = train(
        module, module.Config(**SHORT, **wide), reference=reference, out=tmp_path / "3",
        weights=Weights((*preference, 0.0)), objectives={**OBJECTIVES, "three": never},
    )  # fmt: skip
    assert same_weights(two, three)


@pytest.mark.parametrize(("name", "algorithm"), [("chebyshev", "rloo"), ("chebyshev", "grpo"), ("ctwa", "rloo")])
def test_a_vertex_is_the_single_objective(name: str, algorithm: str, reference: str, tmp_path: Path) -> None:
    module, settings, _ = METHODS[name]
    vertex = Weights((0.0, 1.0))
    config = module.Config(**SHORT, **settings, algorithm=algorithm)
    moved, _ = train(module, config, reference=reference, out=tmp_path / "moved", weights=vertex)
    single, _ = train(
        morlhf, morlhf.Config(**SHORT, algorithm=algorithm), reference=reference, out=tmp_path / "one", weights=vertex
    )
    assert same_weights(moved, single) and not same_weights(moved, reference)


def _two_processes(reference: str, folder: str) -> None:
    """Each process sees its own prompt's scores; both must end with the same memory and the same policy."""
    torch.set_num_threads(1)
    rule = Growth((0.4, 0.6), (0.9, 0.9), 1.0, 0.5, "correlation", True)
    trainer, control = controlled(reference, Path(folder), rule, batch_size=4, num_generations=4, steps=2)
    trainer.train()
    rank, size = trainer.accelerator.process_index, trainer.accelerator.num_processes
    local = [list(objective.last) for objective in trainer.reward_funcs]
    state = trainer.model.state_dict()
    weight = float(sum(tensor.double().abs().sum() for tensor in state.values()))
    told = {"size": size, "memory": control.memory, "last": local, "weights": trainer.reward_weights.tolist()}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps({**told, "policy": weight}))


def test_two_processes_move_the_same_weights_by_all_samples(reference: str, tmp_path: Path) -> None:
    from accelerate import debug_launcher

    debug_launcher(_two_processes, args=(reference, str(tmp_path)), num_processes=2)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["size"] == second["size"] == 2
    assert first["last"] != second["last"]  # they saw different samples
    assert first["memory"] == second["memory"] and first["weights"] == second["weights"]
    assert first["policy"] == pytest.approx(second["policy"], rel=1e-9)
    assert first["memory"]["seen"] == 2 * 2 * 4
    means = [(sum(a) + sum(b)) / 8 for a, b in zip(first["last"], second["last"], strict=True)]
    assert first["memory"]["trace"][-1]["means"] == pytest.approx(means)


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (chebyshev, {}, "ideal .* must be one finite number for each of one, two"),
        (chebyshev, {"ideal": (1.0,)}, "ideal .* must be one finite number"),
        (chebyshev, {"ideal": (1.0, 1.0), "smooth": -0.1}, "smooth must be at least 0"),
        (chebyshev, {"ideal": (1.0, 1.0), "decay": 1.0}, "decay must be in"),
        (chebyshev, {"ideal": (1.0, 1.0), "algorithm": "ppo"}, "algorithm must be one of"),
        (ctwa, {"targets": (0.1, 0.2, 0.3)}, "targets .* must be one finite number, or one for each of one, two"),
        (ctwa, {"measure": "cosine"}, "measure must be one of"),
        (ctwa, {"decay": 1.0}, "decay must be in"),
        (ctwa, {"weight_rate": -1.0}, "weight_rate must be at least 0"),
        (ctwa, {"num_generations": 7}, "do not divide"),
    ],
)
def test_impossible_configurations_are_refused(module: Any, changes: Any, message: str, tmp_path: Path) -> None:
    config = module.Config(**{**RL, **changes})
    with pytest.raises(UserError, match=message):
        fit(module, config, reference="none", weights=[Weights((0.5, 0.5))], out=tmp_path, prompts=PROMPT_ROWS)


@pytest.mark.parametrize("module", [chebyshev, ctwa])
def test_they_are_asked_by_weights_for_prompts(module: Any, tmp_path: Path) -> None:
    settings = {"ideal": (1.0, 1.0)} if module is chebyshev else {}
    with pytest.raises(UserError, match="asked by weights, not by thresholds=none,0.5"):
        fit(module, module.Config(), reference="none", weights=[Thresholds((None, 0.5))], out=tmp_path)
    with pytest.raises(UserError, match="3 numbers, but there are 2 objectives"):
        fit(module, module.Config(), reference="none", weights=[Weights((0.5, 0.25, 0.25))], out=tmp_path)
    with pytest.raises(UserError, match="needs prompts"):
        fit(module, module.Config(**settings), reference="none", weights=[Weights((0.5, 0.5))], out=tmp_path)
