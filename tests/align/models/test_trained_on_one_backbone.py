"""Training on one backbone: a step moves the policy alone, as with separate models; what is saved has no scorers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from align.engines.on_policy import trainer as onpolicy
from align.methods import morlhf, ppo
from align.objectives import Negated, RewardModelObjective, ZScore
from align.objectives.normalizers import Normalized
from align.objectives.shared_reward_model import SharedRewardModel
from align.preferences import Weights
from align.runs import Ledger
from factories.shared_backbones import make_base, make_runs, shared, trainable, weights_of
from factories.tiny_bandit import problem_of, workspace

RL = {"beta": 0.5, "steps": 2, "batch_size": 8, "num_generations": 4, "learning_rate": 1e-2, "logging_steps": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def runs(base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three reward models of different ranks."""
    return make_runs(base, tmp_path_factory.mktemp("rewards"))


class Killed(TrainerCallback):
    """Ends training as soon as a checkpoint is written."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        raise RuntimeError("killed")


def trainer_of(base: str, objectives: Any, folder: Path, **changes: Any) -> Any:
    config = morlhf.Config(**{**RL, "max_completion_length": 3, "lora_r": 2, **changes})
    return morlhf.build_trainer(
        config,
        problem_of(base, objectives=objectives),
        workspace(folder),
        weights=Weights((1 / len(objectives),) * len(objectives)),
    )


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_step_moves_the_policy_alone_and_as_with_separate_models(
    algorithm: str, base: str, runs: dict[str, str], tmp_path: Path
) -> None:
    """K = 3, among them one negated and one normalized; the KL to the reference is on."""
    trained = {}
    for kind, make in (("shared", SharedRewardModel), ("separate", RewardModelObjective)):
        plain: Any = {name: make(run, name=name) for name, run in runs.items()}
        objectives = {
            "one": plain["one"],
            "two": Negated(plain["two"]),
            "three": Normalized(plain["three"], ZScore(mean=0.1, std=0.5, n=4)),
        }
        trainer = trainer_of(base, objectives, tmp_path / kind, algorithm=algorithm)
        before = weights_of(trainer.model)
        names = trainable(trainer.model)
        means = onpolicy.run_trainer(trainer, label=kind, folder=tmp_path / kind, ledger=Ledger())
        after = weights_of(trainer.model)
        moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
        assert moved and moved <= names == trainable(trainer.model)
        if kind == "shared":
            assert plain["one"].backbone.peft is trainer.model and len(after) > len(before)
            scorers = {name: value for name, value in after.items() if ".scorer_" in name}
            from peft import load_peft_weights

            saved = load_peft_weights(f"{runs['one']}/adapter")
            for name, value in saved.items():
                if "lora_" in name:
                    trained_name = name.replace(".weight", ".scorer_0.weight")
                    assert torch.equal(scorers[trained_name], value)
        trained[kind] = ({name: after[name] for name in names}, means)
    for name, value in trained["separate"][0].items():
        assert torch.allclose(trained["shared"][0][name], value, atol=1e-5), name
    means, other = ({n: x for n, x in found.items() if n.startswith(("reward", "kl"))} for _, found in trained.values())
    assert means == pytest.approx(other, abs=1e-4) and means["rewards/one/mean"] != 0


def test_what_is_saved_is_the_policy_alone_and_it_resumes(base: str, runs: dict[str, str], tmp_path: Path) -> None:
    """PEFT would save every adapter that it knows, each in a folder of its own."""
    whole = trainer_of(base, shared(runs), tmp_path / "whole", steps=4)
    onpolicy.run_trainer(whole, label="whole", folder=tmp_path / "whole", ledger=Ledger())
    model = tmp_path / "whole" / "model"
    assert not [path for path in model.iterdir() if path.is_dir()]
    from peft import load_peft_weights

    saved = load_peft_weights(model)
    assert saved and not [name for name in saved if "scorer" in name]
    resumed = tmp_path / "resumed"
    first = trainer_of(base, shared(runs), resumed, steps=4, save_steps=2)
    first.add_callback(Killed())
    with pytest.raises(RuntimeError, match="killed"):
        onpolicy.run_trainer(first, label="first", folder=resumed, ledger=Ledger())
    again = trainer_of(base, shared(runs), resumed, steps=4, save_steps=2)
    onpolicy.run_trainer(again, label="resumed", folder=resumed, ledger=Ledger())
    for name, value in load_peft_weights(resumed / "model").items():
        assert torch.allclose(value, saved[name], atol=1e-6), name


def test_ppo_shares_its_backbone_too(base: str, runs: dict[str, str]) -> None:
    objectives = shared({name: runs[name] for name in ("one", "two")})
    config = ppo.Config(**{**RL, "steps": 1}, lora_r=2, max_completion_length=2)
    trainer = ppo.Trainer(
        config, problem_of(base, objectives=objectives), workspace(Path("unused")), weights=Weights((0.5, 0.5))
    )
    assert all(objective.backbone.peft is trainer.actor.policy for objective in objectives.values())
