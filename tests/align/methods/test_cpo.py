"""Controllable preference optimisation: ratings, targets, the order of pairs, and the bugs of the published code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.engines import tagged
from align.engines.tagged import Response
from align.errors import UserError
from align.methods import cpo
from align.models.chat import OURS
from align.preferences import Targets, Weights
from align.runs import Ledger, Workspace, open_run
from factories.tagged_bandit import law, recorders
from factories.tiny_bandit import (
    BETA,
    PROMPTS,
    RESPONSES,
    WORDS,
    fit,
    pair_rows,
    problem_of,
    reward,
    same_weights,
)

WEIGHTS = [Weights((0.5, 0.5))]
QUICK = {"beta": BETA, "learning_rate": 5e-3, "sft_learning_rate": 1e-2, "batch_size": 64}


# -------------------------------------------------------------------------------------------------------- the order R


def test_cpo_and_or_bug_an_exact_match_scores_best() -> None:
    """`cond and -abs(x) or y` gives y, the raw rating, when the distance is 0: here 0 must be the highest score."""
    for target in range(6):
        scores = [cpo.score((float(p),), asked=(float(target),)) for p in range(6)]
        assert scores[target] == 0.0 == max(scores)
        assert scores == [-abs(p - target) for p in range(6)]


def test_cpo_sign_bug_the_distance_is_of_the_difference() -> None:
    """The published distance in honesty is `-abs(P) - c`: it would prefer the lowest rating whatever was asked."""
    assert cpo.score((5.0,), asked=(5.0,)) > cpo.score((0.0,), asked=(5.0,))
    assert cpo.score((2.0,), asked=(4.0,)) == cpo.score((4.0,), asked=(2.0,)) == -2.0


def test_objectives_out_of_control_are_maximised() -> None:
    # R = 2 * (-0.5 |1 - 3|) + 1 * 4 + 3 * 0 = 2
    assert cpo.score((1.0, 4.0, 0.0), asked=(3.0, None, None), importance=(2.0, 1.0, 3.0), control=0.5) == 2.0
    assert cpo.score((1.0, 4.0), asked=(None, None)) == 5.0


def test_cpo_missing_zero_bug_a_rating_of_zero_survives() -> None:
    """`if response.get(key)` drops a rating of 0: it must reach ratings, targets and tags like any other."""
    rate = cpo.Rater.fit([(0.0, -1.0), (1.0, 3.0)], levels=5)
    assert rate((0.0, -1.0)) == (0.0, 0.0) and rate((1.0, 3.0)) == (5.0, 5.0)
    assert rate((0.5, 1.4)) == (2.0, 3.0) and rate((9.0, -9.0)) == (5.0, 0.0)
    assert cpo.under_control((0.0, 3.0), share=1.0, rng=np.random.default_rng(0)) == (0.0, 3.0)
    pair = (Response("p", (1,), (0.0, 0.0)), Response("p", (2,), (1.0, 1.0)))
    rate = cpo.Rater.fit([r.scores for r in pair], levels=5)
    made, ties = cpo.controlled_pairs([pair] * 60, rate=rate, config=cpo.Config(controlled=1.0))
    assert {p.values for p in made} == {(0.0, 0.0), (5.0, 5.0)} and ties == 0
    for p in made:  # the response with the asked ratings is chosen, of rating 0 or 5
        assert (p.chosen, p.rejected) == (((1,), (2,)) if p.values == (0.0, 0.0) else ((2,), (1,)))


def test_the_text_names_the_objectives_as_they_are_called(reference: str) -> None:
    """The published prefix says "helplessness" for helpfulness."""
    problem = problem_of(reference, objectives=dict.fromkeys(["helpful", "harmless"]))
    tags = tagged.make_tags(cpo.Config(), problem, high=5.0, free=True)
    assert tags.apply("p", (5, None)).replace(OURS, "") == "<helpful: 5> <harmless: any> p"


# ---------------------------------------------------------------------------------------------------- pairs and cases


def responses(*scores: float) -> list[Response]:
    return [Response("p", (i,), (s, 1 - s)) for i, s in enumerate(scores)]


def test_pairs_are_ordered_by_their_own_targets_and_ties_are_dropped() -> None:
    low, middle, high = responses(0.0, 0.5, 1.0)
    rate = cpo.Rater((0.0, 0.0), (1.0, 1.0), 4)
    pairs = [(low, high), (middle, high), (low, middle)]
    made, ties = cpo.controlled_pairs(pairs, rate=rate, config=cpo.Config(draws=200, levels=4))
    assert len(made) + ties == 600 and ties > 0
    by_ids = {r.ids: rate(r.scores) for r in (low, middle, high)}
    for p in made:
        chosen, rejected = (cpo.score(by_ids[ids], asked=p.values) for ids in (p.chosen, p.rejected))
        assert chosen > rejected
    # low against high for the middle's ratings is the tie
    asked = rate(middle.scores)
    assert cpo.score(rate(low.scores), asked=asked) == cpo.score(rate(high.scores), asked=asked)
    # ratings (low, middle, high) come from the three responses only, and every case of control occurs
    assert {p.values for p in made} <= {(a, b) for a in (0, 2, 4, None) for b in (4, 2, 0, None)}
    cases = {tuple(c is None for c in p.values) for p in made}
    assert cases == {(False, False), (True, False), (False, True)}  # both free: a sum that is 4 for all, a tie
    free = sum(c is None for p in made for c in p.values) / (2 * len(made))
    assert free < 0.3


def test_targets_may_be_uniform_over_all_ratings() -> None:
    low, high = responses(0.2, 0.8)
    rate = cpo.Rater.fit([low.scores, high.scores], levels=5)
    config = cpo.Config(draws=400, targets="uniform", controlled=1.0)
    made, ties = cpo.controlled_pairs([(low, high)], rate=rate, config=config)
    assert len({p.values for p in made}) > 25  # of 36, those that tie are dropped
    assert ties / 400 == pytest.approx(6 / 36, abs=0.08)  # |0 - c1| + |5 - c2| = |5 - c1| + |0 - c2| iff c1 = c2
    assert all(p.values[0] != p.values[1] for p in made)


def test_only_ties_are_an_error() -> None:
    same = (Response("p", (1,), (0.5,)), Response("p", (2,), (0.5,)))
    rate = cpo.Rater((0.0,), (1.0,), 5)
    with pytest.raises(UserError, match="every comparison is a tie"):
        cpo.controlled_pairs([same], rate=rate, config=cpo.Config())


# --------------------------------------------------------------------------------------------------------- the training


def test_it_answers_with_the_ratings_that_were_asked(reference: str, tmp_path: Path) -> None:
    rows, ledger = pair_rows(400), Ledger()
    config = cpo.Config(**QUICK, draws=2, sft_epochs=3.0)
    family = fit(cpo, config, reference=reference, weights=WEIGHTS, out=tmp_path, comparisons=rows, ledger=ledger)
    rate = cpo.Rater.fit([s for r in rows for s in (r["scores_a"], r["scores_b"])], levels=5)
    for prompt in PROMPTS:
        for word in RESPONSES:
            asked = Targets(rate([reward(n, prompt, word) for n in ("one", "two")]))
            got = law(family.policy(asked), prompt)
            assert max(range(len(WORDS)), key=got.__getitem__) == WORDS.index(word), (prompt, word, got)
    assert ledger.scores_read == 2 * 2 * 400 and ledger.samples_drawn == 0
    metrics = open_run(tmp_path / "cdpo").metrics
    assert metrics["pairs"] + metrics["ties_dropped"] == 800
    assert not (tmp_path / "cpsft" / "model").exists()  # used up
    assert family.policy(Weights((1.0, 0.0))).values == (5.0, None)
    assert family.policy(Weights((0.6, 0.4))).values == (4.0, 3.0)  # 5 * .6 / |w|_2 = 4.16, 5 * .4 / |w|_2 = 2.77
    assert "no J" in family.optimises["0.5,0.5"]


def test_cdpo_s_reference_is_the_cpsft_model_behind_the_same_tags(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    plain = cpo.build_pair_trainer

    def spying(*args: Any, **kwargs: Any) -> Any:
        seen.append((plain(*args, **kwargs), kwargs))
        return seen[-1][0]

    monkeypatch.setattr(cpo, "build_pair_trainer", spying)
    monkeypatch.setattr(cpo, "finish", save_untrained)
    fit(cpo, cpo.Config(**QUICK), reference=reference, weights=WEIGHTS, out=tmp_path, comparisons=pair_rows(40))
    ((trainer, kwargs),) = seen
    assert trainer.beta == BETA and kwargs["start"].endswith("cpsft")
    import torch

    with torch.no_grad():
        for row in trainer.train_dataset.select(range(5)):
            head, tail = row["prompt_ids"], row["chosen_ids"]
            logp = trainer.model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
            total = sum(logp[len(head) - 1 + i, t].item() for i, t in enumerate(tail))
            assert row["ref_chosen_logps"] == pytest.approx(total, abs=1e-4)  # the policy starts as its reference
            assert min(head) < len(WORDS) <= max(head)  # with tag tokens before the prompt's words


def save_untrained(trainer: Any, *, run: Workspace, **_: Any) -> float:
    """Stands for `finish` without its training."""
    from align.models import save_model

    save_model(trainer.model, trainer.processing_class, run.folder / "model")
    return 0.0


def test_asked_scores_three_objectives_and_seeds(reference: str, tmp_path: Path) -> None:
    bare = [{k: row[k] for k in ("id", "prompt", "a", "b")} for row in pair_rows(40)]
    objectives = {**recorders(), "three": lambda prompts, texts, **_: [float(WORDS.index(t.strip())) for t in texts]}
    three = [Weights((0.2, 0.3, 0.5))]
    models = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = cpo.Config(**QUICK, scores="objectives", seed=seed, importance=(1.0, 2.0, 0.0))
        family = fit(
            cpo, config, reference=reference, weights=three, out=tmp_path / name, comparisons=bare,
            objectives=objectives,
        )  # fmt: skip
        models.append(family.model)
    assert same_weights(models[0], models[1]) and not same_weights(models[0], models[2])
    assert set(objectives["one"].prompts) == set(PROMPTS)
    assert len(family.policy(three[0]).values) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "best"}, "targets must be one of"),
        ({"controlled": 0.0}, "controlled must be above 0"),
        ({"importance": (1.0,)}, "importance needs a number"),
        ({"importance": (1.0, -1.0)}, "importance needs a number"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"sft_learning_rate": 0.0}, "sft_learning_rate must be above 0"),
        ({"scores": "given"}, "scores must be one of"),
    ],
)
def test_impossible_configurations_are_refused(
    changes: dict[str, Any], message: str, reference: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(
            cpo, cpo.Config(**{**QUICK, **changes}), reference=reference, weights=WEIGHTS, out=tmp_path,
            comparisons=pair_rows(4),
        )  # fmt: skip


def test_an_objective_of_one_score_is_refused() -> None:
    with pytest.raises(UserError, match="objective 2 scores all responses alike"):
        cpo.Rater.fit([(0.0, 1.0), (1.0, 1.0)], levels=5)
