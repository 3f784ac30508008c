"""Conditioned A*-PO on the bandit: pi*_w for all w from one drawing, its batches, its loss, what it refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.engines.reference_samples import Sample, SampleTable, sample_table
from align.errors import UserError
from align.methods import astar_po
from align.methods.astar_po import Batches, Config, batch_loss, effective_samples
from align.models import load_model
from align.models.reading import padded
from align.policies.conditioned import AdapterConfig, attach
from align.preferences import Weights
from align.runs import Ledger, open_run
from factories.tiny_bandit import (
    BETA,
    OBJECTIVES,
    PROMPT_ROWS,
    PROMPTS,
    WORDS,
    fit,
    kl,
    next_distribution,
    optimum,
    scalarised,
)

TRAINING: dict[str, Any] = {
    "beta": BETA, "n": 400, "max_completion_length": 1, "steps": 150, "batch_size": 128, "learning_rate": 5e-3,
}  # fmt: skip
SHORT = {**TRAINING, "n": 8, "steps": 2, "batch_size": 16}
ASKED = [Weights((1.0, 0.0)), Weights((0.5, 0.5)), Weights((0.0, 1.0))]
UNSEEN = Weights((0.8, 0.2))


def test_one_run_has_the_optimum_at_every_weight(reference: str, tmp_path: Path) -> None:
    """Within a hundredth of a nat of pi*_w, where the reference is ten times as far or more; samples are paid once."""
    ledger = Ledger()
    family = fit(
        astar_po, Config(**TRAINING), reference=reference, weights=ASKED, out=tmp_path, prompts=PROMPT_ROWS,
        ledger=ledger,
    )  # fmt: skip
    assert (ledger.samples_drawn, ledger.scores_read) == (2 * 400, 2 * 2 * 400)
    for weights in (*ASKED, UNSEEN):
        model = family.policy(weights).path
        for prompt in PROMPTS:
            start = next_distribution(reference, prompt)
            best = optimum(start, scalarised(prompt, weights.values), beta=BETA)
            distance = kl(best, next_distribution(model, prompt))
            assert distance < 0.02 and kl(best, start) > 5 * distance, f"{weights.label} {prompt}: {distance}"
    metrics = open_run(tmp_path / "adapter").metrics
    assert metrics["prompts"] == 2 and metrics["samples_without_score"] == 0
    assert 20 < metrics["effective_samples"]["fewest"] <= metrics["effective_samples"]["mean"] <= 400
    claim = family.optimises["0.5,0.5"]
    assert "E[w.r] - 0.5 KL(pi||ref) at w = 0.5,0.5" in claim and "400 reference samples" in claim


def test_a_sample_that_an_objective_does_not_score_is_left_out_and_tokens_are_those_of_the_batches(
    reference: str, tmp_path: Path
) -> None:
    def every_second(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float | None]:
        return [None if i % 2 else float(i % 4) for i in range(len(completions))]

    ledger, config = Ledger(), Config(**SHORT)
    fit(
        astar_po, config, reference=reference, weights=ASKED, out=tmp_path, prompts=PROMPT_ROWS, ledger=ledger,
        objectives={"one": OBJECTIVES["one"], "two": every_second},
    )  # fmt: skip
    assert open_run(tmp_path / "adapter").metrics["samples_without_score"] == 8
    lengths = np.array([3, 4])  # x : A, y y : A; four groups of eight in two steps, each prompt twice
    assert ledger.tokens == 16 * lengths.sum()


# ------------------------------------------------------------------------------------------------------------- batches


def table() -> SampleTable:
    """Two prompts of three and two samples; the third of the first prompt is good at nothing."""
    rows = [[((2, 4), (5,)), ((2, 4), (6,)), ((2, 4), (7,))], [((3, 3, 4), (5, 1)), ((3, 3, 4), (6, 1))]]
    rewards = np.array([[[1.0, 0.0], [0.0, 1.0], [-9.0, -9.0]], [[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]])
    third, half = -math.log(3), -math.log(2)
    mass = np.array([[third, third, third], [half, half, -np.inf]])
    return SampleTable(rows, rewards, np.array([[-1.0, -2.0, -3.0], [-4.0, -5.0, 0.0]]), mass)


def read(batch: dict[str, torch.Tensor]) -> list[tuple[Any, ...]]:
    """(prompt ids, response ids, weights, advantage, reference's log-probability) of every row."""
    found = []
    for i in range(len(batch["input_ids"])):
        real = batch["attention_mask"][i].bool()
        scored = batch["scored"][i]
        head, tail = (tuple(batch["input_ids"][i][keep].tolist()) for keep in (real & ~scored, scored))
        weights = tuple(batch["preferences"][i].tolist())
        found.append((head, tail, weights, batch["advantage"][i].item(), batch["reference"][i].item()))
    return found


def test_a_batch_is_groups_of_one_prompt_and_weight_with_advantages_by_hand() -> None:
    config = Config(beta=0.5, steps=3, batch_size=16, group=4, explore=0.5)
    batches, known = Batches(table(), config, pad_id=0), table()
    assert len(batches) == 3 and len(Batches(table(), replace(config, gradient_accumulation=2), pad_id=0)) == 6
    for number in range(3):
        rows = read(batches[number])
        assert rows == read(batches[number]), "a resumed run sees the same batch"
        assert len({row[2] for row in rows}) == 4
        for group in (rows[i : i + 4] for i in range(0, 16, 4)):
            assert len({(head, w) for head, _, w, _, _ in group}) == 1
        for head, tail, w, advantage, reference in rows:
            p = 0 if head == (2, 4) else 1
            i = known.rows[p].index((head, tail))
            scores = [float(np.dot(w, known.rewards_PNK[p, j])) for j in range(3 - p)]
            value = 0.5 * math.log(sum(math.exp(s / 0.5) for s in scores) / len(scores))
            assert advantage == pytest.approx(scores[i] - value, abs=1e-5)
            assert reference == known.reference_PN[p, i]
        prompts = [rows[i][0] for i in range(0, 16, 4)]
        assert prompts.count((2, 4)) == 2, "whole passes over the prompts"
    assert read(batches[0]) != read(batches[1])


def test_responses_come_by_their_shares_under_the_optimum_and_explored_ones_evenly() -> None:
    def share_of_bad(explore: float) -> float:
        batches = Batches(table(), Config(beta=0.5, steps=60, batch_size=32, group=4, explore=explore), pad_id=0)
        first = [row for number in range(60) for row in read(batches[number]) if row[0] == (2, 4)]
        return sum(row[1] == (7,) for row in first) / len(first)

    assert share_of_bad(0.0) == 0  # exp(-18) of the best
    assert share_of_bad(1.0) == pytest.approx(1 / 3, abs=0.03)
    assert share_of_bad(0.25) == pytest.approx(1 / 12, abs=0.03)


def test_effective_samples_by_hand() -> None:
    """At w = (1, 0), beta 0.5: the first prompt's shares are e^2 : 1 : 0, the second's e : 1."""
    found = effective_samples(table(), [Weights((1.0, 0.0))], beta=0.5)
    counts = [(math.exp(a) + 1) ** 2 / (math.exp(2 * a) + 1) for a in (2, 1)]
    assert found == {"fewest": pytest.approx(counts[0], abs=1e-6), "mean": pytest.approx(sum(counts) / 2, abs=1e-6)}


def test_the_table_holds_the_reference_s_log_probabilities_and_leaves_room_where_a_prompt_has_fewer(
    reference: str,
) -> None:
    def sample(row: int, word: str, one: float) -> Sample:
        return Sample(row, PROMPTS[row], [WORDS.index(word)], word, {"one": one, "two": 2 * one})

    groups = [[sample(0, "B", 0.5), sample(0, "A", 1.0), sample(0, "A", 1.0)], [sample(1, "C", 3.0)]]
    ledger = Ledger()
    found = sample_table(groups, names=["two", "one"], reference=reference, ledger=ledger)
    a, b = (WORDS.index(word) for word in "AB")
    assert [tail for _, tail in found.rows[0]] == [(a,), (a,), (b,)]
    np.testing.assert_allclose(found.rewards_PNK[0], [[2, 1], [2, 1], [1, 0.5]])
    x = next_distribution(reference, "x :")
    np.testing.assert_allclose(found.reference_PN[0], np.log([x[a], x[a], x[b]]), atol=1e-5)
    np.testing.assert_allclose(np.exp(found.log_mass_PN), [[1 / 3] * 3, [1, 0, 0]])
    parameters = sum(p.numel() for name, p in load_model(reference).named_parameters() if "embed" not in name)
    assert ledger.flops == 2 * parameters * (3 + 3 + 4), "the response that came up twice is read once"


# ---------------------------------------------------------------------------------------------------------------- loss


def test_the_loss_sums_log_probabilities_over_tokens_and_reads_each_row_s_weights(reference: str) -> None:
    """Against row by row passes without padding; responses of one and three tokens, so a mean over tokens differs."""
    model = load_model(reference)
    attach(model, AdapterConfig(kind="dense", objectives=2, products=False, train_all=True))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".D"):
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    rows = [((2, 4), (5,)), ((3, 3, 4), (6, 7, 1))]
    batch, weights = padded(rows, pad_id=0), torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    references, advantages, beta, expected = [-1.0, -4.0], [0.3, -0.2], 0.5, []
    for (head, tail), w, ref, advantage in zip(rows, weights, references, advantages, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*head, *tail]]), preferences=w[None]).logits[0].log_softmax(-1)
        logp = sum(logits[len(head) + t - 1, token].item() for t, token in enumerate(tail))
        expected.append((beta * (logp - ref) - advantage) ** 2)
    given = {"input_ids": batch.ids_BT, "attention_mask": batch.attend_BT, "scored": batch.scored_BT}
    targets = {"preferences": weights, "reference": torch.tensor(references), "advantage": torch.tensor(advantages)}
    assert batch_loss(model, {**given, **targets}, beta=beta).item() == pytest.approx(sum(expected) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 1}, "n must be at least 2"),
        ({"group": 5}, "batch_size 16 does not divide into groups of 5"),
        ({"explore": 1.5}, "explore must be a share in \\[0, 1\\], not 1.5"),
        ({"adam_beta2": 1.0}, "adam_beta2 must be in"),
        ({"lora_r": 4}, "leave lora_r at 0"),
        ({"vertices": -0.1}, "vertices must be a share"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_what_it_cannot_mean_is_refused(changes: dict[str, Any], message: str, reference: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fit(
            astar_po, Config(**{**SHORT, **changes}), reference=reference, weights=ASKED, out=tmp_path,
            prompts=PROMPT_ROWS,
        )  # fmt: skip
