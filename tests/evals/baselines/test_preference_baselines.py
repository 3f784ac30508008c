"""The cheap models find what was planted, their fit is the penalised optimum, and the HH figures come out."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from align.data import load_comparisons, normal_prompt, split_by_prompt
from evals.baselines.preference_baselines import (
    BagOfWords,
    LengthOnly,
    fit_bag_of_words,
    fit_length_only,
    in_order,
    length_matched,
    pairwise_accuracy,
)


def pair(chosen: str, rejected: str, prompt: str = "p") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_scores_by_hand() -> None:
    model = BagOfWords(weights={"sorry": 2.0, "!": -1.0})
    expected = [2 * math.log(3) - math.log(2), 0.0]
    assert model.scores([" Sorry, so SORRY!", "fine"]) == pytest.approx(expected)
    assert LengthOnly(weight=-2.0).scores(["a b c", ""]) == pytest.approx([-2 * math.log(4), 0.0])


def test_one_weight_solves_its_equation() -> None:
    """3 pairs for and 1 against, all with difference log 2: l2 w = 3 x sigmoid(-x w) - x sigmoid(x w), x = log 2."""
    pairs = [pair("yes same", "same")] * 3 + [pair("same", "yes same")]
    weight = fit_bag_of_words(pairs, l2=0.5, min_pairs=1).weights["yes"]
    x, sigmoid = math.log(2), 1 / (1 + math.exp(-math.log(2) * weight))
    assert 0.5 * weight == pytest.approx(x * (3 * (1 - sigmoid) - sigmoid), abs=1e-5)
    assert weight > 0


def test_without_penalty_the_odds_are_the_counts() -> None:
    """One word more in the chosen text of 3 pairs of 4: sigmoid(w log(3/2)) = 3/4."""
    pairs = [pair("a b", "a")] * 3 + [pair("a", "a b")]
    weight = fit_length_only(pairs, l2=1e-9).weight
    assert weight == pytest.approx(math.log(3) / math.log(1.5), rel=1e-3)


def test_a_planted_word_is_found_and_rare_words_are_left_out() -> None:
    generator = random.Random(0)
    fill = [f"w{i}" for i in range(30)]
    pairs = [
        pair(" ".join([*generator.choices(fill, k=6), "good"]), " ".join([*generator.choices(fill, k=6), f"rare{i}"]))
        for i in range(200)
    ]
    model = fit_bag_of_words(pairs, l2=1.0)
    assert max(model.weights, key=lambda word: model.weights[word]) == "good"
    assert not any(word.startswith("rare") for word in model.weights)
    held_out = pairwise_accuracy(
        model.scores(["w1 good", "w2 w3 good"]), model.scores(["w1 bad", "w2 w3"]), prompts=["a", "b"]
    )
    assert held_out.interval.estimate == 1.0


def test_accuracy_ties_and_interval() -> None:
    result = pairwise_accuracy([1, 2, 3, 0], [0, 2, 4, -1], prompts=["a", "b", "c", "d"])
    assert (result.interval.estimate, result.pairs, result.ties) == (2.5 / 4, 4, 1)
    right = np.tile([1, 1, 1, 0], 100)
    apart = pairwise_accuracy(right, np.full(400, 0.5), prompts=[str(i) for i in range(400)])
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert apart.interval.pair == pytest.approx([0.75 - half, 0.75 + half], abs=0.008)
    together = pairwise_accuracy(np.sort(right), np.full(400, 0.5), prompts=[str(i // 10) for i in range(400)])
    assert together.interval.n == 40
    low, high = together.interval.pair or (0.0, 0.0)
    assert high - low > 2 * 2 * half  # ten equal pairs of one prompt are one fact: sqrt(10) wider
    sure = pairwise_accuracy([1.0] * 4, [0.0] * 4, prompts=["a", "b", "c", "d"]).interval
    assert sure.pair == [pytest.approx(4 / (4 + 3.1824**2), abs=1e-3), 1.0], "four of four are not certain: Wilson, t_3"


def test_length_matching_by_hand() -> None:
    pairs = [pair("a b c d", "a b c"), pair("a b c d", "a b"), pair("a b c", " a b c d "), pair("x", "y")]
    assert length_matched(pairs) == [pairs[0], pairs[2], pairs[3]]
    assert length_matched(pairs, tolerance=0.2) == [pairs[3]]
    assert length_matched([pair("abcd", "abc"), pair("a b c", "abc de")], unit="characters") == [
        pair("abcd", "abc"),
        pair("a b c", "abc de"),
    ]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="do not pair up"):
        in_order([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="not a number"):
        in_order([math.nan], [1.0])
    with pytest.raises(ValueError, match="1 pairs with 2 prompts"):
        pairwise_accuracy([1.0], [0.0], prompts=["a", "b"])
    with pytest.raises(ValueError, match="at least one pair"):
        fit_length_only([])
    with pytest.raises(ValueError, match="length tolerance 1"):
        length_matched([], tolerance=1)


def test_the_known_figures_on_real_rows(shared_data: Path) -> None:
    """Bag of words 67/36 and 34/65, length only 64/42 and 36/59 per cent (trained on helpful, then harmless)."""
    parts = {
        name: split_by_prompt(
            load_comparisons(shared_data / "hh_rlhf" / f"{name}_single_turn.jsonl.gz"),
            fractions={"train": 0.8, "test": 0.2},
        )
        for name in ("helpful", "harmless")
    }
    expected = {
        ("helpful", "helpful"): (67, 64),
        ("helpful", "harmless"): (36, 42),
        ("harmless", "helpful"): (34, 36),
        ("harmless", "harmless"): (65, 59),
    }
    for (trained, tested), figures in expected.items():
        models = fit_bag_of_words(parts[trained]["train"]), fit_length_only(parts[trained]["train"])
        rows = parts[tested]["test"]
        for model, figure in zip(models, figures, strict=True):
            result = pairwise_accuracy(
                model.scores([row["chosen"] for row in rows]),
                model.scores([row["rejected"] for row in rows]),
                prompts=[normal_prompt(row["prompt"]) for row in rows],
            )
            low, high = result.interval.pair or (0.0, 0.0)
            assert 0.03 < high - low < 0.06
            assert 100 * result.interval.estimate == pytest.approx(figure, abs=3.5)
