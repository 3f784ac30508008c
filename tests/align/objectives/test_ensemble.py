"""Ensembles of objectives: each way of combining by hand, Missing, batching, binding, and refusals."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from align.errors import UserError
from align.objectives import Ensemble, Keywords, Length, Negated, Objective
from align.objectives.metered import Metered
from align.runs import Ledger


class Fixed:
    """An objective of given scores, which counts how it is called."""

    def __init__(self, name: str, scores: list[float | None], *, learned: bool = False) -> None:
        self.__name__, self.scores, self.learned, self.calls = name, scores, learned, list[Any]()

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        self.calls.append((list(prompts), list(completions), columns))
        return self.scores


def members() -> list[Fixed]:
    return [Fixed("one", [1.0, -2.0, None]), Fixed("two", [3.0, -2.0, 1.0]), Fixed("three", [8.0, 4.0, 1.0])]


# By hand: means 4 and 0; squared distances 9 + 1 + 16 = 26 and 4 + 4 + 16 = 24, over three.
@pytest.mark.parametrize(
    ("combine", "penalty", "expected"),
    [
        ("mean", 1.0, [4.0, 0.0, None]),
        ("min", 1.0, [1.0, -2.0, None]),
        ("mean-std", 1.0, [4 - (26 / 3) ** 0.5, -(8**0.5), None]),
        ("mean-std", 0.5, [4 - 0.5 * (26 / 3) ** 0.5, -0.5 * 8**0.5, None]),
        ("mean-std", 0.0, [4.0, 0.0, None]),
    ],
)
def test_scores_by_hand(combine: str, penalty: float, expected: list[float | None]) -> None:
    scores = Ensemble(members(), combine=combine, penalty=penalty)(["p"] * 3, ["a", "b", "c"])
    assert [s for s in scores if s is not None] == pytest.approx([e for e in expected if e is not None])
    assert [s is None for s in scores] == [e is None for e in expected]


def test_each_member_is_called_once_a_batch_with_all_columns() -> None:
    parts = members()
    Ensemble(parts)(["p", "q", "r"], ["a", "b", "c"], completion_ids=[[1], [2], [3]])
    assert all(p.calls == [(["p", "q", "r"], ["a", "b", "c"], {"completion_ids": [[1], [2], [3]]})] for p in parts)


def test_it_is_an_objective_with_a_name_and_says_whether_it_was_learned() -> None:
    assert isinstance(Ensemble(members()), Objective)
    assert Ensemble(members(), combine="min").__name__ == "min_one_two_three"
    assert Ensemble(members(), name="helpful").__name__ == "helpful"
    assert not Ensemble(members()).learned and Ensemble([*members(), Fixed("rm", [], learned=True)]).learned
    rules = Ensemble([Length("word"), Negated(Keywords(["tea"]))], combine="mean-std", penalty=2.0)
    copied = pickle.loads(pickle.dumps(rules))
    assert copied(["p"], [" tea and bread"]) == rules(["p"], [" tea and bread"])


def test_a_policy_in_training_reaches_the_members_that_share_its_backbone() -> None:
    from align.models.shared_backbone import bind

    bound = list[Any]()
    shared: Any = SimpleNamespace(__name__="shared", bind=bound.append)
    inside: Any = SimpleNamespace(__name__="minus", objective=shared)
    policy: Any = object()
    bind([Metered("helpful", Ensemble([Fixed("plain", []), inside]), Ledger())], policy)
    assert bound == [policy]


def test_refusals() -> None:
    with pytest.raises(UserError, match="at least one objective"):
        Ensemble([])
    with pytest.raises(UserError, match="mean, min, mean-std, not 'median'"):
        Ensemble(members(), combine="median")
    for penalty in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="at least 0"):
            Ensemble(members(), combine="mean-std", penalty=penalty)
    with pytest.raises(ValueError, match="one gave 3 scores for 2 completions"):
        Ensemble(members())(["p", "q"], ["a", "b"])
