"""KTO's fixed point, its labels, and the loss that TRL's trainer computes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.engines.unpaired import Example, threshold_of, thresholded_examples
from align.errors import UserError
from align.methods import kto
from align.models import load_model
from align.policies.base import ModelPolicy
from align.preferences import Weights
from align.runs import Ledger, open_run
from factories.made_kto import BOTH, FEW, four
from factories.tiny_bandit import (
    PROMPTS,
    RESPONSES,
    WORDS,
    fit,
    kl,
    pair_rows,
)


@pytest.fixture(scope="module")
def reference(many_tokens: str) -> str:
    return many_tokens


# w . r at .3, .7 is .3, .35, .51, .7: above 0.4 are C and D; of the first objective alone A and C, of the second B, D
SCORES = {"A": (1.0, 0.0), "B": (0.0, 0.5), "C": (1.0, 0.3), "D": (0.0, 1.0)}


def sampled_rows(reference: str, count: int) -> list[dict[str, Any]]:
    """Comparisons of two responses drawn from the reference among the four, equal ones included."""
    rng, base = random.Random(0), {prompt: four(reference, prompt) for prompt in PROMPTS}
    rows = []
    for i in range(count):
        prompt = PROMPTS[i % 2]
        a, b = rng.choices(RESPONSES, weights=base[prompt], k=2)
        rows.append(
            {"id": f"r{i}", "prompt": prompt, "a": f" {a}", "b": f" {b}", "scores_a": SCORES[a], "scores_b": SCORES[b]}
        )
    return rows


# ---------------------------------------------------------------------------------------------------- the fixed point


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("z", [0.0, 0.4, 3.0])
def test_the_population_loss_is_least_at_the_reference_conditioned_on_the_desirable(beta: float, z: float) -> None:
    """Equation 7 written out on five responses, against 20,000 policies and against small steps in every direction."""
    rng = np.random.default_rng(0)
    reference_V, desirable_V = np.array([0.4, 0.25, 0.2, 0.1, 0.05]), np.array([0, 1, 0, 1, 1], dtype=bool)
    weight_V = np.where(desirable_V, 1.3, 0.8)

    def loss(policy_NV: np.ndarray) -> np.ndarray:
        s_NV = 1 / (1 + np.exp(-beta * (np.log(np.maximum(policy_NV, 1e-300) / reference_V) - z)))
        return (reference_V * weight_V * np.where(desirable_V, 1 - s_NV, s_NV)).sum(-1)

    best_V = np.where(desirable_V, reference_V, 0) / reference_V[desirable_V].sum()
    others_NV = np.concatenate([rng.dirichlet(np.full(5, a), 5000) for a in (0.1, 0.3, 1.0, 5.0)])
    near_NV = 0.98 * best_V + 0.02 * others_NV
    assert loss(best_V) <= loss(others_NV).min() and loss(best_V) < loss(near_NV).min()
    within_NV = np.where(desirable_V, rng.dirichlet(np.ones(3), 2000) @ np.eye(5)[desirable_V], 0)
    assert loss(best_V) < loss(within_NV).min()  # no other split of the mass among the desirable, either


def test_it_moves_to_the_reference_conditioned_on_the_desirable(reference: str, tmp_path: Path) -> None:
    config = kto.Config(
        **{**FEW, "batch_size": 50, "epochs": 5.0, "learning_rate": 5e-3, "threshold": 0.4, "per": "all"}
    )
    rows = sampled_rows(reference, 300)
    family = fit(kto, config, reference=reference, weights=[BOTH], out=tmp_path, comparisons=rows)
    for prompt in PROMPTS:
        base, ours = four(reference, prompt), four(family.points[BOTH.label], prompt)
        wanted = [0.0, 0.0, base[2] / (base[2] + base[3]), base[3] / (base[2] + base[3])]
        assert kl(wanted, base) > 1.0 and kl(wanted, ours) < 0.03
        assert ours[0] + ours[1] < 0.02
    claim = family.optimises[BOTH.label]
    assert claim.startswith("no J") and "conditioned" in claim and "above 0.4" in claim and "0.3,0.7" in claim


# -------------------------------------------------------------------------------------------------------------- labels


def row(number: int, prompt: str, a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    return {"id": str(number), "prompt": prompt, "a": " A", "b": " B", "scores_a": list(a), "scores_b": list(b)}


def labels(rows: Sequence[dict[str, Any]], weights: Sequence[float] = (1.0, 0.0), **config: Any) -> dict[str, str]:
    """Row id to the labels of its responses: + desirable, - not; rows that are left out are missing."""
    scores = {str(r["id"]): (r["scores_a"], r["scores_b"]) for r in rows}
    found: dict[str, str] = {}
    for example in thresholded_examples(
        rows, scores=scores, weights=Weights(tuple(weights)), config=kto.Config(**config)
    ):
        assert example.completion == (" A", " B")[example.side]
        found[example.id] = found.get(example.id, "") + "-+"[example.label]
    return found


ROWS = [
    row(1, "p", (1, 0), (2, 9)),
    row(2, "p", (6, 5), (3, 4)),
    row(3, "q", (10, 0), (11, 1)),
    row(4, "r", (7, 7), (7, 7)),
]


def test_labels_by_prompt() -> None:
    """p: mean 3 (3 itself is not above it), median 2.5; q: 10.5; r: both responses are equal and tell nothing."""
    assert labels(ROWS) == {"1": "--", "2": "+-", "3": "-+"}
    assert labels(ROWS, threshold="median") == {"1": "--", "2": "++", "3": "-+"}
    assert labels(ROWS, threshold=10.0) == {"3": "-+"}  # nothing of p is above 10


def test_labels_over_all_responses() -> None:
    """1 2 3 6 7 7 10 11: mean 47 / 8 = 5.875, median 6.5."""
    assert labels(ROWS, per="all") == {"1": "--", "2": "+-", "3": "++", "4": "++"}
    assert labels(ROWS, per="all", threshold="median") == {"1": "--", "2": "--", "3": "++", "4": "++"}
    assert labels(ROWS, per="all", threshold=10.0) == {"1": "--", "2": "--", "3": "-+", "4": "--"}


def test_labels_follow_the_weights() -> None:
    """w . r of p at .5, .5: .5, 5.5, 5.5, 3.5, mean 3.75."""
    assert labels(ROWS, (0.5, 0.5))["1"] == "-+" and labels(ROWS, (0.5, 0.5))["2"] == "+-"
    assert labels(ROWS, (0.0, 1.0))["1"] == "-+"


def test_rounding_makes_no_response_better_than_its_equal() -> None:
    """.1 + .2 against .3: the mean lies between them, and neither is above it."""
    rows = [row(1, "p", (0.2, 0.4), (0.6, 0.0)), row(2, "q", (0.0, 0.0), (1.0, 1.0))]
    assert 0.5 * 0.2 + 0.5 * 0.4 != 0.5 * 0.6
    assert labels(rows, (0.5, 0.5)) == {"2": "-+"}
    assert threshold_of([0.1 + 0.2, 0.3], rule="mean") == 0.3


def test_an_annotator_of_a_temperature_gives_labels_by_the_sigmoid() -> None:
    """(value - threshold) / tau = (1 - 0) / 0.5 = 2: sigmoid .8808, and one half for a response at the threshold."""
    rows = [row(i, f"p{i}", (1.0, 0.0), (0.0, 0.0)) for i in range(4000)]
    found = labels(rows, threshold=0.0, tau=0.5, seed=1)
    shares = [sum(text[side] == "+" for text in found.values()) / 4000 for side in (0, 1)]
    assert abs(shares[0] - 0.8808) < 5 * math.sqrt(0.105 / 4000) and abs(shares[1] - 0.5) < 5 * math.sqrt(0.25 / 4000)
    both = sum(text == "++" for text in found.values()) / 4000
    assert abs(both - 0.4404) < 5 * math.sqrt(0.25 / 4000)  # a draw of its own for each response
    assert found == labels(rows, threshold=0.0, tau=0.5, seed=1) != labels(rows, threshold=0.0, tau=0.5, seed=2)


def test_rows_of_one_label_are_refused() -> None:
    for threshold in (99.0, -99.0):
        with pytest.raises(UserError, match="different sides of the threshold"):
            labels(ROWS, threshold=threshold, per="all")
    with pytest.raises(UserError, match="2 scores for 3 objectives"):
        labels(ROWS, (0.5, 0.25, 0.25))


def test_both_sides_weigh_the_same() -> None:
    """2 of 8 are desirable: weights 8 / 4 = 2 and 8 / 12 = 2/3, so that 2 x 2 = 6 x 2/3."""
    examples = [Example(str(i), 0, "p", "c", i < 2) for i in range(8)]
    assert kto.side_weights(examples, config=kto.Config()) == pytest.approx((2, 2 / 3))
    assert kto.side_weights(examples, config=kto.Config(desirable_weight=5.0)) == pytest.approx((5, 2 / 3))
    assert kto.side_weights(examples, config=kto.Config(undesirable_weight=0.1)) == pytest.approx((2, 0.1))


@pytest.mark.parametrize(("count", "epochs", "wanted"), [(10, 1.0, 12), (12, 1.0, 12), (10, 2.5, 28), (3, 1.0, 4)])
def test_passes_are_whole_and_end_with_a_whole_step(count: int, epochs: float, wanted: int) -> None:
    """Steps of 2 x 2 examples. Published pipelines read the rows in stored order, chosen and rejected in turns."""
    examples = [Example(str(i), 0, "p", "c", True) for i in range(count)]
    config = kto.Config(batch_size=2, gradient_accumulation=2, epochs=epochs)
    order = [int(example.id) for example in kto.passes(examples, config=config)]
    assert len(order) == wanted
    for start in range(0, wanted - count + 1, count):
        assert sorted(order[start : start + count]) == list(range(count))
    assert order[:count] != sorted(order[:count]) and max(Counter(order).values()) <= math.ceil(wanted / count)
    if wanted >= 2 * count:
        assert order[:count] != order[count : 2 * count]  # shuffled anew in every pass


# ---------------------------------------------------------------------------------------------------- TRL's trainer

EXAMPLES = [
    Example("0", 0, "x :", " A", True),
    Example("1", 0, "y y :", " B C", False),
    Example("2", 0, "x :", " D", False),
    Example("3", 0, "y y :", " C", True),
    Example("4", 0, "x :", "", True),
    Example("5", 0, "y y :", " A A", True),
]
END = WORDS.index("<end>")
COLUMNS = ("prompt_ids", "completion_ids")


def trainer_of(reference: str, folder: Path, **changes: Any) -> Any:
    config = kto.Config(**{**FEW, "batch_size": 3, **changes})
    return kto.build_trainer(EXAMPLES, config=config, reference=reference, folder=folder)


def ids_of(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_completions_end_and_are_moved_on_by_one_within_a_batch(reference: str, tmp_path: Path) -> None:
    """Contract with TRL; the end token is on every completion, the empty one included."""
    data = trainer_of(reference, tmp_path).train_dataset
    rows = list(zip(data["prompt_ids"], data["completion_ids"], data["label"], strict=True))
    wanted = [(ids_of(e.prompt), [*ids_of(e.completion), END], e.label) for e in EXAMPLES]
    assert sorted(rows) == sorted(wanted)
    assert list(data["KL_completion_ids"]) == [rows[i][1] for i in (2, 0, 1, 5, 3, 4)]


def test_batches_come_in_the_order_that_was_paired(reference: str, tmp_path: Path) -> None:
    trainer = trainer_of(reference, tmp_path)
    assert trainer.calculate_KL
    seen = [batch["label"].tolist() for batch in trainer.get_train_dataloader()]
    assert sum(seen, []) == list(trainer.train_dataset["label"])
    assert [len(part) for part in seen] == [3, 3]


def test_the_reference_is_the_checkpoint_on_disk(reference: str, tmp_path: Path) -> None:
    """Read before the first step, for the completions and for the moved ones, each with its end token."""
    data = trainer_of(reference, tmp_path).train_dataset
    policy = ModelPolicy(reference)
    prompts, texts = (["".join(f" {WORDS[i]}" for i in ids if i != END) for ids in data[c]] for c in COLUMNS)
    prompts = [prompt.removeprefix(" ") for prompt in prompts]
    assert list(data["ref_logps"]) == pytest.approx(policy.sequence_logprobs(prompts, texts), abs=1e-4)
    moved = [texts[i] for i in (2, 0, 1, 5, 3, 4)]
    assert list(data["ref_KL_logps"]) == pytest.approx(policy.sequence_logprobs(prompts, moved), abs=1e-4)


def plain_logp(model: Any, head: Sequence[int], tail: Sequence[int]) -> float:
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([[*head, *tail]])).logits[0].log_softmax(-1)
    return sum(float(logp[len(head) + i - 1, token]) for i, token in enumerate(tail))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_loss_is_equation_7_with_balanced_weights_and_a_clamped_kl(
    sign: float, reference: str, tmp_path: Path
) -> None:
    """Against plain forward passes of a disturbed policy, with a KL estimate above 0 and one below."""
    trainer = trainer_of(reference, tmp_path, batch_size=6)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    data, base = trainer.train_dataset, load_model(reference)
    rows = list(zip(data["prompt_ids"], data["completion_ids"], data["KL_completion_ids"], data["label"], strict=True))
    ratios = [plain_logp(trainer.model, p, c) - plain_logp(base, p, c) for p, c, _, _ in rows]
    moved = [plain_logp(trainer.model, p, k) - plain_logp(base, p, k) for p, _, k, _ in rows]
    batch = next(iter(trainer.get_train_dataloader()))
    # The estimate's sign is chosen through the reference's log-probabilities, which the batch carries.
    shift = sum(moved) / 6 - sign * 0.7
    batch["ref_KL_logps"] = batch["ref_KL_logps"] + shift
    z = max(sum(moved) / 6 - shift, 0.0)
    assert z == pytest.approx(0.7 if sign > 0 else 0.0)
    up, down = 6 / (2 * 4), 6 / (2 * 2)  # 4 of 6 are desirable

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    terms = [
        up * (1 - sigmoid(0.5 * (ratio - z))) if label else down * (1 - sigmoid(0.5 * (z - ratio)))
        for ratio, (_, _, _, label) in zip(ratios, rows, strict=True)
    ]
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(sum(terms) / 6, abs=1e-4)
    assert max(map(abs, ratios)) > 0.1


def test_a_batch_of_one_side_or_of_one_example_is_no_accident(reference: str, tmp_path: Path) -> None:
    """TRL takes a batch whose labels are alike, and refuses batches of one; so do we, by name."""
    alike = [e for e in EXAMPLES if e.label] + [EXAMPLES[1]]
    trainer = kto.build_trainer(
        alike, config=kto.Config(**{**FEW, "batch_size": 2, "seed": 1}), reference=reference, folder=tmp_path
    )
    batches = [batch["label"].tolist() for batch in trainer.get_train_dataloader()]
    assert [True, True] in batches
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    with pytest.raises(ValueError, match="batch size must be > 1"):
        trainer_of(reference, tmp_path, batch_size=1)
    with pytest.raises(UserError, match="make batch_size at least 2"):
        fit(kto, kto.Config(batch_size=1), reference="none", weights=[BOTH], out=tmp_path, comparisons=pair_rows(4))


def test_the_ledger_counts_what_was_fed_and_read(reference: str, tmp_path: Path) -> None:
    from align.models import count_parameters

    rows, ledger = pair_rows(8), Ledger()
    config = kto.Config(**{**FEW, "epochs": 2.0, "per": "all"})
    fit(kto, config, reference=reference, weights=[BOTH], out=tmp_path, comparisons=rows, ledger=ledger)
    fed = 2 * sum(len(r["prompt"].split()) + 2 for r in rows for _ in "ab")  # a word and the end token each
    assert ledger.tokens == fed and ledger.samples_drawn == 0 and ledger.scores_read == 16
    # 6 N a token to train, and 2 N each for: the policy on the moved completions, the reference on both
    assert ledger.flops == 12 * count_parameters(load_model(reference), embeddings=False) * fed
    metrics = open_run(tmp_path / "points" / BOTH.label).metrics
    assert metrics["examples"] == 16 and 0 < metrics["desirable"] < 16 and metrics["examples_without_contrast"] == 0


def test_prompts_that_fill_the_length_are_dropped_and_counted(reference: str, tmp_path: Path) -> None:
    config = kto.Config(**FEW, max_length=3)
    fit(kto, config, reference=reference, weights=[BOTH], out=tmp_path, comparisons=pair_rows(16))
    metrics = open_run(tmp_path / "points" / BOTH.label).metrics
    assert (metrics["examples"], metrics["examples_dropped_by_length"]) == (16, 16)  # "y y :" has three tokens
    with pytest.raises(UserError, match="max_length = 2"):
        fit(
            kto, kto.Config(**FEW, max_length=2), reference=reference, weights=[BOTH], out=tmp_path / "2",
            comparisons=pair_rows(8),
        )  # fmt: skip
