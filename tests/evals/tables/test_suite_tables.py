"""Numbers per shift by hand: samples averaged first, base items as clusters, changes paired, Missing by reason."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from evals.items import Item, Missing, Prompt
from evals.measure.cells import Cell
from evals.shifts.base import Shift
from evals.stats.intervals import clustered_mean, paired_difference
from evals.tables.suite_tables import number_table, numeric_fields, table_hash

NAME = "refusal_margin"


def shift(name: str) -> Shift:
    return Shift(name, "none", "none", lambda text, rng: Prompt.user(text))


def cells(values: dict[str, list[list[Any]]], *, cluster: str = "") -> list[Cell]:
    """shift -> per item its samples' margins; every two items share a base item where `cluster` is given."""
    made = []
    for name, items in values.items():
        for i, samples in enumerate(items):
            item = Item(f"i{i}", "x", columns={"cluster": f"{cluster}{i // 2}"} if cluster else {})
            prompt = shift(name).encode("x", Random(0))
            for s, value in enumerate(samples):
                value = value if isinstance(value, Missing) else {"margin": value, "kl": [1.0], "why": "w"}
                made.append(Cell("s", item, shift(name), s, prompt, {NAME: value}))
    return made


def test_samples_are_averaged_first_and_changes_are_paired() -> None:
    table = number_table(cells({"none": [[0.0, 2.0], [3.0, 3.0]], "t": [[2.0, 4.0], [3.0, 5.0]]}), NAME)
    margins = table["fields"]["margin"]
    assert margins["none"]["value"] == 2.0 and margins["t"]["value"] == 3.5 and margins["t"]["n"] == 2
    assert margins["t"]["change"]["value"] == 1.5 and "change" not in margins["none"]
    by_hand = paired_difference({"a": 3.0, "b": 4.0}, second={"a": 1.0, "b": 3.0})
    assert margins["t"]["change"]["ci"] == pytest.approx(by_hand.pair)


def test_items_of_one_base_item_are_one_cluster() -> None:
    values = [[1.0], [1.0], [5.0], [5.0]]
    tables = [number_table(cells({"none": values}, cluster=c), NAME) for c in ("", "b")]
    apart, together = (table["fields"]["margin"]["none"] for table in tables)
    assert (apart["n"], together["n"]) == (4, 2)
    flat = [v for (v,) in values]
    assert together["ci"] == clustered_mean(flat, clusters_N=["b0", "b0", "b1", "b1"]).pair != apart["ci"]


def test_missing_is_counted_by_reason_and_in_no_mean() -> None:
    gone = Missing("context", lasting=True)
    table = number_table(cells({"none": [[1.0], [gone]], "t": [[gone], [gone]]}), NAME)
    assert table["missing"] == {"none": {"context": 1}, "t": {"context": 2}}
    assert table["fields"]["margin"]["none"]["value"] == 1.0 and "t" not in table["fields"]["margin"]


def test_lists_and_text_are_not_averaged_and_the_hash_follows_every_number() -> None:
    made = cells({"none": [[1.0], [2.0]]})
    assert numeric_fields(made, NAME) == ["margin"]
    table = number_table(made, NAME)
    other = number_table(cells({"none": [[1.0], [2.0000001]]}), NAME)
    assert table_hash(table) == table_hash(number_table(made, NAME)) != table_hash(other)
