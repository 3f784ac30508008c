"""Whoever scores samples is told which of them were cut, in every engine that draws: also where ids say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.methods import best_sft, morlhf, ppo
from align.models.sampling import Drawn, told
from align.objectives.metered import Metered
from align.policies.base import ModelPolicy
from align.policies.best_of_n import BestOfNPolicy
from align.preferences import Weights
from align.runs import Ledger
from factories.made_ppo import SETTINGS
from factories.tiny_bandit import PROMPT_ROWS, PROMPTS, RL, fit, make_reference

ONE = {**RL, "steps": 1, "max_completion_length": 2}


@pytest.fixture(scope="module")
def many_tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose responses end at the end token only, so that two tokens cut most of them."""
    return make_reference(tmp_path_factory.mktemp("many") / "model", one_token=False, sharpness=3.0)


class Recorder:
    """Scores by the number of tokens, and keeps which samples it was told are cut."""

    __name__ = "recorder"

    def __init__(self) -> None:
        self.told: list[tuple[tuple[int, ...], bool]] = []

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        ids = [tuple(one) for one in columns["completion_ids"]]
        self.told += zip(ids, columns["completion_ended"], strict=True)
        return [float(len(one)) for one in ids]

    def check(self, end: int) -> None:
        assert {ended for _, ended in self.told} == {True, False}, "some are cut, and some are not"
        assert all(ended == (ids[-1] == end) for ids, ended in self.told)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (morlhf, ONE),
        (morlhf, {**ONE, "algorithm": "grpo"}),
        (ppo, {**SETTINGS, "steps": 1, "max_completion_length": 2}),
        (best_sft, {"n": 4, "max_completion_length": 2, "learning_rate": 1e-3, "batch_size": 16}),
    ],
    ids=["rloo", "grpo", "ppo", "best_sft"],
)
def test_training_tells_which_samples_were_cut(
    method: Any, settings: dict[str, Any], many_tokens: str, tmp_path: Path
) -> None:
    recorder = Recorder()
    fit(
        method, method.Config(**settings), reference=many_tokens, weights=[Weights((1.0,))], out=tmp_path,
        prompts=PROMPT_ROWS, objectives={"recorder": recorder},
    )  # fmt: skip
    recorder.check(ModelPolicy(many_tokens).tokenizer.eos_token_id)


def test_best_of_n_tells_which_samples_were_cut(many_tokens: str) -> None:
    recorder, reference = Recorder(), ModelPolicy(many_tokens)
    BestOfNPolicy(reference, score=recorder, n=8, name="best").draw(list(PROMPTS), max_new_tokens=2, seed=0)
    recorder.check(reference.tokenizer.eos_token_id)


def test_a_metered_objective_tells_by_the_last_id_and_leaves_what_is_told() -> None:
    recorder = Recorder()
    metered = Metered("recorder", recorder, Ledger(), ends=(7, 9))
    metered(["p"] * 4, [""] * 4, completion_ids=[[7], [5, 9], [9, 5], []])
    assert [ended for _, ended in recorder.told] == [True, True, False, False]
    metered(["p"], [""], completion_ids=[[9]], completion_ended=[False])
    assert recorder.told[-1] == ((9,), False)
    drawn = [Drawn((4, 9), True, "a"), Drawn((4,), False, "b")]
    assert told(drawn) == {"completion_ids": [[4, 9], [4]], "completion_ended": [True, False]}
