"""One conditioned run on pairs: labels by weight, preferences through DPO's batches, and the front it reaches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from align.data.comparisons import annotated_pairs, row_scores
from align.engines import conditioned_pairs
from align.methods import joint_soup
from align.models import load_model
from align.policies.base import ModelPolicy
from align.policies.conditioned import AdapterConfig, adapted_layers
from align.preferences import Weights
from align.runs import Ledger
from factories.conditioned_models import ASKED, disturb
from factories.formulae import dpo_loss
from factories.tiny_bandit import (
    BETA,
    OBJECTIVES,
    PAIRS,
    PROMPTS,
    RESPONSES,
    WORDS,
    fit,
    kl,
    optimum,
    pair_rows,
    problem_of,
    reward,
)


def pair_data(*, rows: Any = None, **changes: Any) -> tuple[Any, list[Any], list[tuple[float, ...]]]:
    config = joint_soup.Config(**{**PAIRS, "data": "pairs", "epochs": 1.0, **changes})
    problem = problem_of("", comparisons=rows or pair_rows(32))
    pairs, weights = conditioned_pairs.labelled_pairs(config, problem, Ledger())
    return config, pairs, weights


def test_dpo_reads_each_pair_at_its_preference(many_tokens: str, tmp_path: Path) -> None:
    """Contract: the column reaches the model through collator and loss, for chosen and rejected alike; the reference's
    log-probabilities are the bare checkpoint's.
    """
    config, pairs, weights = pair_data(batch_size=32, tau=0.2)
    trainer = conditioned_pairs.build_trainer(
        pairs, weights, adapter=AdapterConfig("dense"), config=config, reference=many_tokens, beta=2.5, folder=tmp_path,
    )  # fmt: skip
    disturb(trainer.model, size=0.3)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["preferences"].shape == (64, 2)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()

    def logps(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sides: list[list[torch.Tensor]] = [[], []]
        for pair, w in zip(pairs, weights, strict=True):
            extra = {"preferences": torch.tensor([w])} if adapted_layers(model) else {}
            head = [WORDS.index(word) for word in pair.prompt.split()]
            for side, text in enumerate((pair.chosen, pair.rejected)):
                tail = [WORDS.index(word) for word in text.split()] + [1]
                with torch.no_grad():
                    logp = model(input_ids=torch.tensor([head + tail]), **extra).logits[0].log_softmax(-1)
                sides[side].append(sum(logp[len(head) + i - 1, token] for i, token in enumerate(tail)))
        return torch.stack(sides[0]), torch.stack(sides[1])

    chosen, rejected = logps(trainer.model)
    ref_chosen, ref_rejected = logps(load_model(many_tokens))
    expected = dpo_loss(chosen, rejected_B=rejected, ref_chosen_B=ref_chosen, ref_rejected_B=ref_rejected, beta=2.5)
    assert loss == pytest.approx(expected.mean().item(), abs=1e-4)


def test_labels_follow_the_objectives_by_weight() -> None:
    """sum_k w_k L_k in the mean: the label is objective k's with probability w_k, also where both disagree."""
    rows = pair_rows(400)
    config, pairs, weights = pair_data(rows=rows, epochs=10.0)
    assert len(pairs) == 4000 and len({pair.id for pair in pairs}) == 4000
    by_k = [
        {
            p.id: p.swapped
            for p in annotated_pairs(rows, scores=row_scores(rows), weights=Weights.vertex(k, 2), tau=0.4, seed=0)
        }
        for k in (0, 1)
    ]
    followed: dict[int, list[bool]] = {0: [], 1: [], 2: []}
    for pair, w in zip(pairs, weights, strict=True):
        row = pair.id.split("/")[0]
        if by_k[0][row] == by_k[1][row]:
            assert pair.swapped == by_k[0][row]
        else:
            followed[min(int(3 * w[0]), 2)].append(pair.swapped == by_k[0][row])
    for third, answers in followed.items():  # w_1 uniform within each third
        assert len(answers) > 300
        assert sum(answers) / len(answers) == pytest.approx((third + 0.5) / 3, abs=0.08)


def test_at_a_vertex_pairs_carry_that_objectives_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioned_pairs, "even_draws", lambda count, **_: [(0.0, 1.0)] * count)
    rows = pair_rows(64)
    known = {
        p.id: p for p in annotated_pairs(rows, scores=row_scores(rows), weights=Weights((0.0, 1.0)), tau=0.4, seed=0)
    }
    for aggregate in conditioned_pairs.AGGREGATES:
        _, pairs, _ = pair_data(rows=rows, aggregate=aggregate)
        assert all(dataclasses.replace(p, id=p.id.split("/")[0]) == known[p.id.split("/")[0]] for p in pairs)


def test_given_labels_count_alike_for_every_objective() -> None:
    rows = [
        {"id": f"{name}{i}", "prompt": "x :", "chosen": " A", "rejected": " D", "objective": name}
        for name, count in (("one", 300), ("two", 30))
        for i in range(count)
    ]
    config = joint_soup.Config(**{**PAIRS, "data": "pairs", "labels": "given", "epochs": 2.0})
    pairs, weights = conditioned_pairs.labelled_pairs(config, problem_of("", comparisons=rows), Ledger())
    assert len(pairs) == 1200 and len({pair.id for pair in pairs}) == 1200
    for k, name in enumerate(("one", "two")):
        own = [w[k] for pair, w in zip(pairs, weights, strict=True) if pair.id.startswith(name)]
        assert len(own) == 600
        assert sum(own) / 600 == pytest.approx(2 / 3, abs=0.04)  # density 2 w_k on [0, 1]


def test_pairs_are_charged_once() -> None:
    for aggregate, labels, expected in (
        ("losses", "scalarised", 64), ("scalarised", "scalarised", 96), ("losses", "objectives", 4 * 32 + 64),
    ):  # fmt: skip
        ledger = Ledger()
        config = joint_soup.Config(
            **{**PAIRS, "data": "pairs", "labels": labels, "aggregate": aggregate, "epochs": 3.0}
        )
        conditioned_pairs.labelled_pairs(config, problem_of("", comparisons=pair_rows(32)), ledger)
        assert ledger.scores_read == expected


def pair_share(family: Any, reference: str, weights: Sequence[Weights]) -> float:
    """Sum of the regrets at these preferences, over the reference's, among the four responses that pairs hold."""
    ours, theirs = 0.0, 0.0
    for w in weights:
        for prompt in PROMPTS:
            tables = []
            for path in (family.policy(w).path, reference):
                logp = ModelPolicy(path).sequence_logprobs([prompt] * 4, [f" {word}" for word in RESPONSES])
                total = math.log(sum(math.exp(x) for x in logp))
                tables.append([math.exp(x - total) for x in logp])
            rewards = [
                sum(v * reward(n, prompt, word) for v, n in zip(w, OBJECTIVES, strict=True)) for word in RESPONSES
            ]
            best = optimum(tables[1], rewards, beta=BETA)
            ours += kl(tables[0], best)
            theirs += kl(tables[1], best)
    return ours / theirs


@pytest.mark.parametrize("aggregate", conditioned_pairs.AGGREGATES)
def test_one_run_on_pairs(aggregate: str, reference: str, tmp_path: Path) -> None:
    """At the corners both aggregations are the single DPO; inside, summed losses are not J's. (Their optimum
    bends sharply near the corners, where a little of the other label undoes much, so they are drawn close to them.)
    """
    concentration = {"scalarised": 0.7, "losses": 0.05}[aggregate]
    settings = {**PAIRS, "data": "pairs", "aggregate": aggregate, "concentration": concentration}
    settings |= {"tau": 0.2, "batch_size": 64}
    data = {"reference": reference, "weights": ASKED, "comparisons": pair_rows(1500)}
    family = fit(joint_soup, joint_soup.Config(**settings), out=tmp_path, **data)
    asked = ASKED if aggregate == "scalarised" else ASKED[::2]
    assert pair_share(family, reference, asked) < 0.15
    swapped = type("", (), {"policy": lambda self, w: family.policy(Weights(w.values[::-1]))})()
    assert pair_share(swapped, reference, asked) > 1  # it reads the preference
    assert ("not the optimum of J" in family.optimises[ASKED[1].label]) == (aggregate == "losses")
    assert "not the optimum of J" not in family.optimises["1,0"]


def test_three_objectives_on_pairs(many_tokens: str, tmp_path: Path) -> None:
    rows = [{**r, "scores_a": [*r["scores_a"], 0.3], "scores_b": [*r["scores_b"], 0.1]} for r in pair_rows(24)]
    objectives = {**OBJECTIVES, "three": OBJECTIVES["two"]}
    asked = Weights((0.2, 0.3, 0.5))
    config = joint_soup.Config(**{**PAIRS, "data": "pairs", "epochs": 1.5, "batch_size": 8})
    ledger = Ledger()
    family = fit(
        joint_soup, config, reference=many_tokens, weights=[asked], out=tmp_path, comparisons=rows,
        objectives=objectives, ledger=ledger,
    )  # fmt: skip
    assert ledger.scores_read == 3 * 24 and ledger.tokens > 0 and ledger.flops > 0
    changes = [
        ModelPolicy(path).sequence_logprobs(["x :"], [" A"])[0] for path in (family.policy(asked).path, many_tokens)
    ]
    assert changes[0] != changes[1]
