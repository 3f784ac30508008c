"""What a method leaves: adapters and families found again, ending tokens kept, and the same weights after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.data.comparisons import annotated_pairs, row_scores
from align.engines import pairs as pair_training
from align.errors import UserError
from align.methods import dpo, morlhf
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.preferences import Weights
from align.runs import Ledger, open_run
from factories.tiny_bandit import BETA, OBJECTIVES, PAIRS, PROMPT_ROWS, RL, fit, pair_rows, same_weights, workspace


@pytest.mark.parametrize("method", ["dpo", "morlhf"])
def test_lora_trains_an_adapter_that_a_policy_can_load(method: str, reference: str, tmp_path: Path) -> None:
    weights = Weights((0.5, 0.5))
    if method == "dpo":
        config: Any = dpo.Config(**{**PAIRS, "epochs": 1.0, "learning_rate": 1e-2}, lora_r=4)
        family = fit(dpo, config, reference=reference, weights=[weights], out=tmp_path, comparisons=pair_rows(128))
    else:
        config = morlhf.Config(**{**RL, "steps": 10}, lora_r=4)
        family = fit(morlhf, config, reference=reference, weights=[weights], out=tmp_path, prompts=PROMPT_ROWS)
    model = family.points[weights.label]
    assert (Path(model) / "adapter_config.json").is_file() and not (Path(model) / "model.safetensors").exists()
    (ours,) = ModelPolicy(model).sequence_logprobs(["x :"], [" A"])
    (theirs,) = ModelPolicy(reference).sequence_logprobs(["x :"], [" A"])
    assert ours != theirs


def test_families_are_saved_and_found_again(reference: str, tmp_path: Path) -> None:
    weights = [Weights((1.0, 0.0)), Weights((0.5, 0.5))]
    config = morlhf.Config(**{**RL, "steps": 1})
    family = fit(morlhf, config, reference=reference, weights=weights, out=tmp_path, prompts=PROMPT_ROWS)
    family.save(tmp_path)
    again = load_family(tmp_path)
    assert set(again.preferences) == set(weights)
    assert again.policy(weights[1]).name == "morlhf@0.5,0.5"
    with pytest.raises(UserError, match="no policy at 0,1"):
        again.policy(Weights((0.0, 1.0)))


def test_saved_models_keep_the_list_of_ending_tokens(reference: str, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    weights = Weights((0.5, 0.5))
    family = fit(
        morlhf, morlhf.Config(**{**RL, "steps": 1}), reference=reference, weights=[weights], out=tmp_path / "r",
        prompts=PROMPT_ROWS,
    )  # fmt: skip
    pairs = fit(
        dpo, dpo.Config(**PAIRS), reference=reference, weights=[weights], out=tmp_path / "d", comparisons=pair_rows(64)
    )
    wanted = GenerationConfig.from_pretrained(reference).eos_token_id
    assert len(wanted) == 9
    for model in (family.points[weights.label], pairs.points[weights.label]):
        assert GenerationConfig.from_pretrained(model).eos_token_id == wanted


class Interrupting:
    """An objective that works `calls` times and then stands for a killed process."""

    def __init__(self, calls: int) -> None:
        self.__name__, self.calls = "one", calls

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return OBJECTIVES["one"](prompts, completions, **columns)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_an_interrupted_run_resumes_to_the_same_weights(algorithm: str, reference: str, tmp_path: Path) -> None:
    weights = [Weights((1.0, 0.0)), Weights((0.5, 0.5))]
    config = morlhf.Config(**{**RL, "steps": 6}, algorithm=algorithm, save_steps=2, gradient_accumulation=2)
    data = {"reference": reference, "weights": weights, "prompts": PROMPT_ROWS}
    whole = fit(morlhf, config, out=tmp_path / "whole", **data)
    with pytest.raises(KeyboardInterrupt):
        fit(morlhf, config, out=tmp_path / "cut", objectives={**OBJECTIVES, "one": Interrupting(11)}, **data)
    assert open_run(tmp_path / "cut" / "points" / "1,0").metrics["reward"] > 0  # the first point was finished
    assert list((tmp_path / "cut" / "points" / "0.5,0.5.partial" / "checkpoints").glob("checkpoint-4"))
    first = (tmp_path / "cut" / "points" / "1,0" / "run.json").stat().st_mtime_ns
    ledger = Ledger()
    cut = fit(morlhf, config, out=tmp_path / "cut", ledger=ledger, **data)
    for w in weights:
        assert same_weights(whole.points[w.label], cut.points[w.label])
    assert (tmp_path / "cut" / "points" / "1,0" / "run.json").stat().st_mtime_ns == first  # reused, not trained again
    assert ledger.samples_drawn == 2 * 6 * 192  # and charged all the same
    assert not list((tmp_path / "cut").rglob("checkpoint-*"))


def test_dpo_resumes_to_the_same_weights(reference: str, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from align.training.common import resume_point

    weights, rows = Weights((0.5, 0.5)), pair_rows(192)
    config = dpo.Config(**{**PAIRS, "batch_size": 32, "epochs": 2.0}, save_steps=4)
    whole = fit(dpo, config, reference=reference, weights=[weights], out=tmp_path / "whole", comparisons=rows)
    pairs = annotated_pairs(rows, scores=row_scores(rows), weights=weights, tau=config.tau, seed=0)

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 9:
                raise KeyboardInterrupt

    folder = tmp_path / "cut"
    settings = {"config": config, "reference": reference, "beta": BETA / config.tau}
    trainer = pair_training.dpo_trainer(pairs, **settings, folder=folder)
    trainer.add_callback(Kill())
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=resume_point(folder))
    pair_training.train_on_pairs(pairs, **settings, run=workspace(folder))
    assert same_weights(whole.points[weights.label], str(folder / "model"))
