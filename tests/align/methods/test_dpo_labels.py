"""DPO's labels, given or asked from the objectives, and its term that keeps the chosen response likely."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.data.comparisons import annotated_pairs, row_scores
from align.errors import UserError
from align.methods import dpo
from align.policies.base import ModelPolicy
from align.preferences import Weights
from align.runs import Ledger
from factories.tiny_bandit import BETA, PAIRS, fit, next_distribution, pair_rows, same_weights


def test_given_labels_follow_one_objective(reference: str, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"{name}{i}",
            "prompt": "x :",
            "chosen": " A" if name == "one" else " C",
            "rejected": " D",
            "objective": name,
        }
        for name in ("one", "two")
        for i in range(40)
    ]
    config = dpo.Config(beta=BETA, learning_rate=1e-2, batch_size=40)
    vertices = [Weights((1.0, 0.0)), Weights((0.0, 1.0))]
    family = fit(dpo, config, reference=reference, weights=vertices, out=tmp_path, comparisons=rows)
    before = next_distribution(reference, "x :")
    one, two = (next_distribution(family.points[w.label], "x :") for w in vertices)
    a, c = 5, 7
    assert one[a] > before[a] and one[a] > two[a]
    assert two[c] > before[c] and two[c] > one[c]
    with pytest.raises(UserError, match="given labels follow one"):
        fit(dpo, config, reference=reference, weights=[Weights((0.5, 0.5))], out=tmp_path / "mixed", comparisons=rows)


def test_labels_may_be_asked_from_the_objectives(reference: str, tmp_path: Path) -> None:
    rows = pair_rows(64)
    bare = [{key: row[key] for key in ("id", "prompt", "a", "b", "u")} for row in rows]
    settings = {**PAIRS, "epochs": 1.0}
    weights, ledger = Weights((0.5, 0.5)), Ledger()
    told = fit(
        dpo, dpo.Config(**settings), reference=reference, weights=[weights], out=tmp_path / "a", comparisons=rows
    )
    asked = fit(
        dpo, dpo.Config(**{**settings, "labels": "objectives"}), reference=reference, weights=[weights],
        out=tmp_path / "b", comparisons=bare, ledger=ledger,
    )  # fmt: skip
    assert same_weights(told.points[weights.label], asked.points[weights.label])
    assert ledger.scores_read == 2 * 2 * 64 + 64  # both objectives on both responses, and the annotator's labels


def test_the_mle_term_raises_the_likelihood_of_chosen_responses(reference: str, tmp_path: Path) -> None:
    rows, weights = pair_rows(256), Weights((0.5, 0.5))
    likelihoods = []
    for mle_weight in (0.0, 1.0):
        config = dpo.Config(**{**PAIRS, "epochs": 1.0}, mle_weight=mle_weight)
        family = fit(
            dpo, config, reference=reference, weights=[weights], out=tmp_path / str(mle_weight), comparisons=rows
        )
        pairs = annotated_pairs(rows, scores=row_scores(rows), weights=weights, tau=PAIRS["tau"], seed=0)
        policy = ModelPolicy(family.points[weights.label])
        likelihoods.append(sum(policy.sequence_logprobs([p.prompt for p in pairs], [p.chosen for p in pairs])))
    assert likelihoods[1] > likelihoods[0]
    assert "NLL" in family.optimises[weights.label]
