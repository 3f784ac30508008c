"""Joining a published testbed table with a new sitting's: what stays, what is replaced, what is left out."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.testbed.merge import commits_of, merge
from benchmarks.testbed.table import over_seeds

NUMBERS = (
    "regret_mean", "matched_kl_hypervolume", "raw_hypervolume", "kl", "worst_weight_regret", "training_runs",
    "samples_drawn", "scores_read", "flops", "seconds", "evaluation_seconds",
)  # fmt: skip


def seed_entry(share: float) -> dict[str, Any]:
    return {
        **dict.fromkeys(NUMBERS, share), "regret_share": share, "kendall_tau": {"helpful": 1.0},
        "samples_per_response": 1, "optimises": {"1,0": "J"},
    }  # fmt: skip


def row(shares: dict[int, float], *, key: str = "k", world: str = "default", wrong: float = 0.5) -> dict[str, Any]:
    by_seed = {seed: seed_entry(share) for seed, share in shares.items()}
    parts = {"wrong_objective": wrong, "unfinished": by_seed[min(by_seed)]["regret_mean"] - wrong}
    return {"key": key, "control": False, "worlds": {world: over_seeds(by_seed) | parts}}


def table(methods: dict[str, Any], *, hashes: dict[str, str], seeds: list[int], commit: str) -> dict[str, Any]:
    worlds = {name: {"hash": value} for name, value in hashes.items()}
    return {"methods": methods, "worlds": worlds, "seeds": seeds, "commit": commit}


def test_seeds_of_one_row_are_joined_and_the_interval_is_anew() -> None:
    old = table({"a": row({0: 0.1}, wrong=0.03)}, hashes={"default": "h"}, seeds=[0], commit="x")
    new = table({"a": row({1: 0.2, 2: 0.3}, wrong=0.9)}, hashes={"default": "h"}, seeds=[1, 2], commit="y")
    found, lost = merge(new, published=old)
    entry = found["methods"]["a"]["worlds"]["default"]
    assert lost == [] and list(entry["seeds"]) == ["0", "1", "2"]
    assert entry["regret_share"] == pytest.approx(0.2)
    # t(2, .975) = 4.302653; the standard error of .1, .2, .3 is .1 / sqrt(3)
    assert entry["regret_share_ci"] == pytest.approx([0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5])
    assert entry["wrong_objective"] == 0.03 and entry["unfinished"] == pytest.approx(0.07)  # of seed 0, the lowest
    assert found["seeds"] == [0, 1, 2] and commits_of(found) == ["x", "y"]


def test_where_both_have_a_seed_the_new_sitting_stands() -> None:
    old = table({"a": row({0: 0.1, 1: 0.5})}, hashes={"default": "h"}, seeds=[0, 1], commit="x")
    new = table({"a": row({0: 0.2}, wrong=0.1)}, hashes={"default": "h"}, seeds=[0], commit="y")
    entry = merge(new, published=old)[0]["methods"]["a"]["worlds"]["default"]
    assert [entry["seeds"][s]["regret_share"] for s in ("0", "1")] == [0.2, 0.5] and entry["wrong_objective"] == 0.1


def test_other_rows_and_worlds_stay_in_their_order() -> None:
    old = table(
        {"b": row({0: 0.1}), "a": row({0: 0.4}, world="three")},
        hashes={"default": "h", "three": "t"},
        seeds=[0],
        commit="x",
    )
    new = table({"a": row({0: 0.2}), "c": row({0: 0.3})}, hashes={"default": "h"}, seeds=[0], commit="x")
    found, lost = merge(new, published=old)
    assert list(found["methods"]) == ["b", "a", "c"] and set(found["methods"]["a"]["worlds"]) == {"default", "three"}
    assert lost == [] and found["worlds"]["three"] == {"hash": "t"} and commits_of(found) == ["x"]


@pytest.mark.parametrize(("key", "world_hash"), [("other", "h"), ("k", "other")])
def test_what_means_something_else_now_is_named_and_left_out(key: str, world_hash: str) -> None:
    old = table({"a": row({1: 0.1}, key=key)}, hashes={"default": world_hash}, seeds=[1], commit="x")
    new = table({"a": row({0: 0.2})}, hashes={"default": "h"}, seeds=[0], commit="y")
    found, lost = merge(new, published=old)
    assert lost == ["a on default"] and list(found["methods"]["a"]["worlds"]["default"]["seeds"]) == ["0"]
