"""What the tests of the lm_eval bridge share: the mark of those that need lm_eval, and a closed question."""

from __future__ import annotations

import importlib.util

import pytest

from evals.items import Item

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm_eval is not installed (pip install 'align-tradeoffs[lm-eval]')",
)


def closed(name: str, target: int, text: str = "Is tea good?", cluster: str | None = None) -> Item:
    return Item(
        name, f"{text} {name}", choices=("no", "yes"), target=target, columns={"cluster": cluster or name}
    )  # fmt: skip
