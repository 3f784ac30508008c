"""Directional preference alignment: directions and cones, the best of n along them, rounds that add up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from align.engines import tagged
from align.engines.tagged import Response
from align.engines.tagged_pairs import Example
from align.errors import UserError
from align.methods import dpa
from align.preferences import Direction, Targets, Weights
from align.runs import Ledger, open_run
from factories.tagged_bandit import killed_at, law, mean_reward, recorders
from factories.tiny_bandit import (
    BETA,
    PROMPT_ROWS,
    PROMPTS,
    WORDS,
    fit,
    next_distribution,
    pair_rows,
    reward,
    same_weights,
)

WEIGHTS = [Weights((0.5, 0.5))]
QUICK = {
    "learning_rate": 1e-2, "batch_size": 64, "rounds": 2, "prompts_per_round": 64, "n": 4, "beta": BETA,
    "max_completion_length": 1,
}  # fmt: skip


def test_the_best_is_that_of_the_largest_projection() -> None:
    group = [Response("p", (i,), scores) for i, scores in enumerate([(1.0, 0.0), (0.0, 1.0), (0.7, 0.7), (0.7, 0.7)])]
    assert dpa.best_of(group, direction=(1.0, 0.0)).ids == (0,)
    assert dpa.best_of(group, direction=(0.0, 1.0)).ids == (1,)
    assert dpa.best_of(group, direction=(0.8, 0.6)).ids == (2,)  # .98, the first of two alike
    assert dpa.best_of(group, direction=(0.6, -0.8)).ids == (0,)  # less of the second


@pytest.mark.parametrize(
    ("changes", "objectives", "expected"),
    [
        ({}, 2, 0.0),
        ({"max_angle": 45.0}, 2, 0.0),  # the diagonal +- 45 degrees is the orthant
        ({"max_angle": 60.0}, 2, -0.3),  # cos(105 degrees) = -.26
        ({"max_angle": 45.0, "axis": (1.0, 0.0)}, 2, -0.8),  # cos(135 degrees) = -.71: verbosity may be negative
        ({"max_angle": 180.0}, 3, -1.0),
        ({"max_angle": 20.0}, 3, 0.0),  # cos(54.7 + 20 degrees) is positive
    ],
)
def test_tags_reach_as_low_as_directions_do(changes: dict[str, Any], objectives: int, expected: float) -> None:
    assert dpa.lowest(dpa.Config(**changes), objectives) == pytest.approx(expected)


def test_rounds_draw_from_the_round_before_and_add_up(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    trained: list[Any] = []
    plain_sample, plain_imitate = tagged.sample, dpa.imitate

    def recording_sample(model: Any, tokenizer: Any, **kwargs: Any) -> Any:
        asked.append((len(tokenizer), kwargs["asked"]))
        return plain_sample(model, tokenizer, **kwargs)

    def recording_imitate(examples: Any, **kwargs: Any) -> Any:
        trained.append((list(examples), kwargs["model"]))
        return plain_imitate(examples, **kwargs)

    monkeypatch.setattr(tagged, "sample", recording_sample)
    monkeypatch.setattr(dpa, "imitate", recording_imitate)
    objectives, ledger = recorders(), Ledger()
    family = fit(
        dpa, dpa.Config(**QUICK), reference=reference, weights=WEIGHTS, out=tmp_path, prompts=PROMPT_ROWS,
        objectives=objectives, ledger=ledger,
    )  # fmt: skip
    (first_size, first), (second_size, second) = asked
    assert first_size == len(WORDS) < second_size  # the reference itself, then the tagged model
    assert {v for _, v in first} == {None} and all(v is not None for _, v in second)
    for i in range(0, 256, 4):  # one direction for the n responses of a prompt
        assert len({(row["prompt"], v) for row, v in second[i : i + 4]}) == 1
    assert len({v for _, v in second}) == 64
    assert len(trained[0][0]) == 64 and len(trained[1][0]) == 128
    assert trained[1][0][:64] == trained[0][0]
    assert trained[1][1].endswith("round-1")
    kept = tagged.kept(tmp_path / "round-2", Example)
    assert kept == trained[1][0][64:]
    for objective in objectives.values():
        assert set(objective.prompts) == set(PROMPTS) and len(objective.prompts) == 512
    assert ledger.samples_drawn == 512 and ledger.scores_read == 1024
    assert not (tmp_path / "round-1" / "model").exists() and Path(family.model) == tmp_path / "round-2" / "model"
    assert open_run(tmp_path / "round-1").metrics["gain_of_best"] > 0.1


def test_what_is_kept_is_the_best_along_its_direction(reference: str, tmp_path: Path) -> None:
    """Of many samples of the reference all words are among them, so that the kept one has the largest v . r of all."""
    config = dpa.Config(**{**QUICK, "n": 1024, "rounds": 1, "prompts_per_round": 16, "sample_batch_size": 4096})
    fit(dpa, config, reference=reference, weights=WEIGHTS, out=tmp_path, prompts=PROMPT_ROWS)
    for example in tagged.kept(tmp_path / "round-1", Example):
        values = {
            word: sum(v * reward(n, example.prompt, word) for v, n in zip(example.values, ("one", "two"), strict=True))
            for word in WORDS
        }
        assert values[WORDS[example.ids[0]]] == pytest.approx(max(values.values()))


def test_the_fixed_point_of_a_round_is_best_of_n(reference: str, tmp_path: Path) -> None:
    """At one direction the distribution of the best of two is `F(y)^2 - F(y-)^2`, F by rank of v . r."""
    config = dpa.Config(
        **{**QUICK, "n": 2, "rounds": 1, "prompts_per_round": 3000, "epochs": 4.0, "learning_rate": 5e-3},
        axis=(1.0, 0.0), max_angle=0.01,
    )  # fmt: skip
    family = fit(dpa, config, reference=reference, weights=WEIGHTS, out=tmp_path, prompts=PROMPT_ROWS)
    for prompt in PROMPTS:
        ref = next_distribution(reference, prompt)
        gains = [reward("one", prompt, word) for word in WORDS]
        below = [sum(p for p, g in zip(ref, gains, strict=True) if g < gain) for gain in gains]
        equal = [sum(p for p, g in zip(ref, gains, strict=True) if g == gain) for gain in gains]
        expected = [
            p / e * ((b + e) ** 2 - b**2) for p, b, e in zip(ref, below, equal, strict=True)
        ]  # the first of equal ones: any of them, in proportion
        assert sum(expected) == pytest.approx(1.0)
        got = law(family.policy(Weights((1.0, 0.0))), prompt)
        assert got == pytest.approx(expected, abs=0.04)


def test_the_policies_go_where_they_are_asked(reference: str, tmp_path: Path) -> None:
    config = dpa.Config(**{**QUICK, "prompts_per_round": 800, "epochs": 4.0, "learning_rate": 5e-3})
    family = fit(dpa, config, reference=reference, weights=WEIGHTS, out=tmp_path, prompts=PROMPT_ROWS)
    policies = [family.policy(Weights(w)) for w in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))]
    one = [mean_reward(p, "one") for p in policies]
    two = [mean_reward(p, "two") for p in policies]
    assert one[0] > one[1] + 0.02 and one[1] > one[2] + 0.02
    assert two[0] < two[1] - 0.02 and two[1] < two[2] - 0.02
    diagonal = Direction((math.sqrt(0.5), math.sqrt(0.5)))
    assert family.policy(diagonal).values == policies[1].values == (0.7, 0.7)
    assert "no J" in family.optimises["0.5,0.5"] and "best of 4" in family.optimises["0.5,0.5"]


def test_an_interrupted_run_goes_on_with_the_finished_rounds(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dpa.Config(**QUICK)
    whole = fit(dpa, config, reference=reference, weights=WEIGHTS, out=tmp_path / "w", comparisons=pair_rows(10))
    with monkeypatch.context() as patch:
        patch.setattr(tagged, "sample", killed_at(2, tagged.sample))
        with pytest.raises(KeyboardInterrupt):
            fit(dpa, config, reference=reference, weights=WEIGHTS, out=tmp_path / "c", comparisons=pair_rows(10))
    again = fit(dpa, config, reference=reference, weights=WEIGHTS, out=tmp_path / "c", comparisons=pair_rows(10))
    assert same_weights(whole.model, again.model)
    other = fit(
        dpa, dpa.Config(**QUICK, seed=1), reference=reference, weights=WEIGHTS, out=tmp_path / "o",
        comparisons=pair_rows(10),
    )  # fmt: skip
    assert not same_weights(whole.model, other.model)


def test_three_objectives_and_negative_directions(reference: str, tmp_path: Path) -> None:
    objectives = {**recorders(), "three": lambda prompts, texts, **_: [float(len(t)) for t in texts]}
    config = dpa.Config(**{**QUICK, "rounds": 1}, axis=(1.0, 0.0, 0.0), max_angle=60.0)
    family = fit(
        dpa, config, reference=reference, weights=[Direction((0.6, -0.8, 0.0))], out=tmp_path, prompts=PROMPT_ROWS,
        objectives=objectives,
    )  # fmt: skip
    assert family.policy(Direction((0.6, -0.8, 0.0))).values == pytest.approx((0.6, -0.8, 0.0), abs=0.05)
    assert family.tags.low == pytest.approx(-0.9)  # cos(150 degrees)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"max_angle": 0.0}, "max_angle must be null"),
        ({"max_angle": 200.0}, "max_angle must be null"),
        ({"axis": (1.0,), "max_angle": 45.0}, "axis needs one number"),
        ({"axis": (1.0, 0.0)}, "and a max_angle"),
        ({"axis": (0.0, 0.0), "max_angle": 45.0}, "not all 0"),
    ],
)
def test_impossible_configurations_are_refused(
    changes: dict[str, Any], message: str, reference: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(
            dpa, dpa.Config(**{**QUICK, **changes}), reference=reference, weights=WEIGHTS, out=tmp_path,
            prompts=PROMPT_ROWS,
        )  # fmt: skip


def test_it_needs_prompts_and_is_asked_by_weights_or_directions(reference: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dpa needs prompts"):
        fit(dpa, dpa.Config(**QUICK), reference=reference, weights=WEIGHTS, out=tmp_path)
    with pytest.raises(UserError, match="asked by weights or direction"):
        fit(dpa, dpa.Config(**QUICK), reference=reference, weights=[Targets((0.5, 0.5))], out=tmp_path)  # type: ignore[list-item]
    with pytest.raises(UserError, match="other columns"):
        fit(
            dpa, dpa.Config(**QUICK), reference=reference, weights=WEIGHTS, out=tmp_path,
            prompts=[*PROMPT_ROWS, {"prompt": "x :"}],
        )  # fmt: skip
