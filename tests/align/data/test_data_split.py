"""No prompt crosses a split, a row's part depends on nothing but its prompt, and shares come out as asked."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from align.data import load_comparisons, normal_prompt, split_by_prompt
from align.errors import UserError

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
ROWS = [{"id": i, "prompt": f"question number {i % 3000}"} for i in range(6000)]


def places(parts: dict[str, list[dict[str, object]]]) -> dict[object, str]:
    return {row["id"]: name for name, rows in parts.items() for row in rows}


def test_shares_and_order() -> None:
    parts = split_by_prompt(ROWS, fractions=FRACTIONS, seed=1)
    shares = {name: len(rows) / len(ROWS) for name, rows in parts.items()}
    for name, share in FRACTIONS.items():
        assert abs(shares[name] - share) < 4 * (share * (1 - share) / 3000) ** 0.5  # 4 binomial standard errors
    shuffled = random.Random(0).sample(ROWS, k=len(ROWS))
    assert places(split_by_prompt(shuffled, fractions=FRACTIONS, seed=1)) == places(parts)
    assert places(split_by_prompt(ROWS[:10], fractions=FRACTIONS, seed=1)).items() <= places(parts).items()
    assert places(split_by_prompt(ROWS, fractions=FRACTIONS, seed=2)) != places(parts)


def test_one_prompt_in_several_spellings_stays_together() -> None:
    same = ["Is TEA  hot?", "is tea hot", "\n\nHuman: Is tea hot?\n\nAssistant:", "\uff29s tea hot!"]
    longer = "\n\nHuman: Is tea hot?\n\nAssistant: Yes.\n\nHuman: How hot?\n\nAssistant:"
    assert {normal_prompt(prompt) for prompt in [*same, longer]} == {"is tea hot"}
    assert normal_prompt("???") == "???"
    for seed in range(20):
        parts = split_by_prompt([{"prompt": p} for p in [*same, longer]], fractions={"a": 0.5, "b": 0.5}, seed=seed)
        assert sorted(len(rows) for rows in parts.values()) == [0, 5]


def test_bad_fractions_and_rows() -> None:
    for fractions in ({"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {}):
        with pytest.raises(UserError, match="positive shares that sum to 1"):
            split_by_prompt(ROWS, fractions=fractions)
    with pytest.raises(UserError, match="row 1: no text in column 'prompt'"):
        split_by_prompt([{"text": "a"}], fractions={"a": 1.0})


def test_no_real_prompt_crosses(shared_data: Path) -> None:
    rows = [
        row
        for name in ("helpful_single_turn", "harmless_single_turn")
        for row in load_comparisons(shared_data / "hh_rlhf" / f"{name}.jsonl.gz")
    ]
    parts = split_by_prompt(rows, fractions=FRACTIONS)
    prompts = [{normal_prompt(row["prompt"]) for row in part} for part in parts.values()]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    assert sum(map(len, parts.values())) == len(rows)
