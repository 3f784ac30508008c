"""Gradient-level DPO: the combined step, what it keeps and costs, and its mistakes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from align.engines.gradient_step import ConflictRecord, combine, gram_of
from align.errors import UserError
from align.functional.combine import Combination, coefficients
from align.methods import dpo, gradient_dpo, gradient_rl
from align.models import load_model
from align.preferences import Weights
from align.runs import Ledger
from factories.formulae import dpo_loss
from factories.made_gradient_methods import (
    DPO,
    NAMES,
    SHORT,
    THREE,
    W3,
    assert_close,
    combined,
    conflicting_rows,
    dpo_trainer,
    flat_gradient,
    gradients_of,
    rl_trainer,
    word_logp,
)
from factories.tiny_bandit import (
    BETA,
    PROMPTS,
    fit,
    pair_rows,
    same_weights,
)

COMBINERS = ("sum", "mgda", "pcgrad", "cagrad", "nash_mtl", "raco")


def dpo_gradients(reference: str, rows: Sequence[Any], *, tau: float, beta: float = BETA) -> np.ndarray:
    """(3, D) gradients of each objective's DPO loss at the reference, from its own labels, sequence by sequence."""
    model = load_model(reference)
    both = [[word_logp(model, row["prompt"], (row[side].strip(), "<end>")) for side in ("a", "b")] for row in rows]
    found = []
    for k in range(3):
        first = [row["u"] < 1 / (1 + math.exp(-(row["scores_a"][k] - row["scores_b"][k]) / tau)) for row in rows]
        chosen_B = torch.stack([a if wins else b for (a, b), wins in zip(both, first, strict=True)])
        rejected_B = torch.stack([b if wins else a for (a, b), wins in zip(both, first, strict=True)])
        terms = {"ref_chosen_B": chosen_B.detach(), "ref_rejected_B": rejected_B.detach()}
        loss = dpo_loss(chosen_B, rejected_B=rejected_B, beta=beta / tau, **terms).mean()
        found.append(flat_gradient(loss, model))
    return np.array(found)


@pytest.mark.parametrize("combiner", COMBINERS)
def test_a_dpo_step_combines_the_gradients_of_the_objectives_losses(
    combiner: str, reference: str, tmp_path: Path
) -> None:
    """Also the guard against surgery after a summed backward pass, which changes nothing (Truxify#11390, #12340)."""
    rows = conflicting_rows(24)
    apart_KD = dpo_gradients(reference, rows, tau=0.1)
    assert apart_KD[0] @ apart_KD[1] < 0
    trainer, _ = dpo_trainer(reference, tmp_path, rows=rows, tau=0.1, combiner=combiner)
    (found_D,) = gradients_of(trainer)
    assert_close(found_D, combined(apart_KD, combiner=combiner, weights=W3))
    summed_D = np.array(W3) @ apart_KD
    if combiner == "sum":  # per-objective DPO losses combined, by the explicit formula
        assert_close(found_D, summed_D)
    else:
        assert np.linalg.norm(found_D - summed_D) > 0.05 * np.linalg.norm(summed_D)
    if combiner == "mgda":
        assert (apart_KD @ found_D).min() > 0


@pytest.mark.parametrize(
    ("combiner", "changes"),
    [("sum", {}), ("nash_mtl", {"gradient_accumulation": 3}), ("raco", {"lora_r": 2})],
    ids=["plain", "three micro-batches", "lora"],
)
def test_gradient_dpo_at_a_vertex_is_dpo_bit_for_bit(
    combiner: str, changes: dict[str, Any], reference: str, tmp_path: Path
) -> None:
    settings, vertex, rows = {**DPO, **changes, "max_grad_norm": 1.0}, Weights((0.0, 1.0)), pair_rows(96)
    data = {"reference": reference, "weights": [vertex], "comparisons": rows}
    one, two = Ledger(), Ledger()
    plain = fit(dpo, dpo.Config(**settings), out=tmp_path / "d", ledger=one, **data)
    config = gradient_dpo.Config(**settings, combiner=combiner)
    ours = fit(gradient_dpo, config, out=tmp_path / "g", ledger=two, **data)
    if "lora_r" in changes:
        names = ("adapter_model.safetensors",)
        weights = [[(Path(f.points["0,1"]) / n).read_bytes() for n in names] for f in (plain, ours)]
        assert weights[0] == weights[1]
    else:
        assert same_weights(plain.points["0,1"], ours.points["0,1"])
        assert not same_weights(ours.points["0,1"], reference)
    assert (one.tokens, one.flops, one.scores_read) == (two.tokens, two.flops, two.scores_read)
    assert "DPO of one objective" in ours.optimises["0,1"]


def test_an_objective_of_weight_0_leaves_no_trace_in_dpo(reference: str, tmp_path: Path) -> None:
    """K = 3 with w_3 = 0 is K = 2."""
    rows = conflicting_rows(24)
    two_rows = [{**row, "scores_a": row["scores_a"][:2], "scores_b": row["scores_b"][:2]} for row in rows]
    config = gradient_dpo.Config(**DPO, combiner="cagrad")
    three = fit(
        gradient_dpo, config, reference=reference, weights=[Weights((0.4, 0.6, 0.0))], out=tmp_path / "three",
        comparisons=rows, objectives=THREE,
    )  # fmt: skip
    two = fit(
        gradient_dpo, config, reference=reference, weights=[Weights((0.4, 0.6))], out=tmp_path / "two",
        comparisons=two_rows,
    )  # fmt: skip
    assert same_weights(three.points["0.4,0.6,0"], two.points["0.4,0.6"])


def test_the_sum_of_dpo_losses_ends_at_the_average_of_the_labels(reference: str, tmp_path: Path) -> None:
    """What `optimises` says: the implied reward difference is `logit sum_k w_k P_k(a wins)`, not `w . dr / tau`.

    A against C on the first prompt: dr = 1 and -1 of two objectives, tau .4. Of 24 draws u on a grid, 22 are below
    sigmoid(2.5) = .924 and 2 below sigmoid(-2.5) = .076: .3 22/24 + .7 2/24 = 1/3, of logit -log 2 = -.693. The optimum
    of J at w = (.3, .7) has -.4 / .4 = -1.
    """
    row = {"prompt": PROMPTS[0], "a": " A", "b": " C", "scores_a": [1.0, 0.0], "scores_b": [0.0, 1.0]}
    rows = [{**row, "id": str(i), "u": (i + 0.5) / 24} for i in range(24)]
    config = gradient_dpo.Config(**{**DPO, "batch_size": 24, "epochs": 50.0, "scheduler": "cosine"}, combiner="sum")
    family = fit(
        gradient_dpo, config, reference=reference, weights=[Weights((0.3, 0.7))], out=tmp_path, comparisons=rows
    )
    logp = []
    for model in (load_model(family.points["0.3,0.7"]), load_model(reference)):
        logp.append([word_logp(model, PROMPTS[0], (word, "<end>")).item() for word in ("A", "C")])
    implied = config.beta / config.tau * ((logp[0][0] - logp[0][1]) - (logp[1][0] - logp[1][1]))
    assert implied == pytest.approx(-math.log(2), abs=0.05)


@pytest.mark.parametrize("combiner", ["pcgrad", "raco"])
def test_micro_batches_are_averaged_before_they_are_combined(combiner: str, reference: str, tmp_path: Path) -> None:
    """2 x 12 pairs are one step of 24: the published RACO code combines per micro-batch, which is another step."""
    settings = {"rows": conflicting_rows(24), "tau": 0.1, "combiner": combiner}
    (whole_D,) = gradients_of(dpo_trainer(reference, tmp_path / "whole", **settings)[0])
    halves = dpo_trainer(reference, tmp_path / "halves", batch_size=12, gradient_accumulation=2, **settings)[0]
    (found_D,) = gradients_of(halves)
    assert_close(found_D, whole_D)
    apart = dpo_trainer(reference, tmp_path / "apart", batch_size=12, learning_rate=1e-12, **settings)[0]
    first_D, second_D = gradients_of(apart)
    assert np.linalg.norm((first_D + second_D) / 2 - whole_D) > 0.01 * np.linalg.norm(whole_D)


def test_signs_stay_with_their_pairs_where_trl_drops_rows(reference: str, tmp_path: Path) -> None:
    kept_rows = conflicting_rows(12)
    dropped = [{**row, "id": f"long {row['id']}", "prompt": PROMPTS[1]} for row in reversed(kept_rows)]
    mixed = [row for pair in zip(dropped, kept_rows, strict=True) for row in pair]
    settings = {"tau": 0.1, "combiner": "mgda", "max_length": 3, "batch_size": 12}  # the second prompt has 3 tokens
    (expected_D,) = gradients_of(dpo_trainer(reference, tmp_path / "kept", rows=kept_rows, **settings)[0])
    (found_D,) = gradients_of(dpo_trainer(reference, tmp_path / "mixed", rows=mixed, **settings)[0])
    assert_close(found_D, expected_D)


def test_clipping_comes_after_the_combination(reference: str, tmp_path: Path) -> None:
    rows = conflicting_rows(12)
    (free_D,) = gradients_of(dpo_trainer(reference, tmp_path / "free", rows=rows, combiner="mgda")[0])
    (held_D,) = gradients_of(
        dpo_trainer(reference, tmp_path / "held", rows=rows, combiner="mgda", max_grad_norm=0.01)[0]
    )
    assert np.linalg.norm(free_D) > 0.02
    assert_close(held_D, 0.01 * free_D / np.linalg.norm(free_D))


def test_one_forward_pass_serves_all_objectives(reference: str, tmp_path: Path) -> None:
    trainer, _ = dpo_trainer(reference, tmp_path, rows=conflicting_rows(24), batch_size=12)
    calls = []
    trainer.model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 2  # two steps, three objectives
    rl, _ = rl_trainer(reference, tmp_path / "rl", steps=1, gradient_accumulation=2, batch_size=12)
    model, passes = rl.model, []
    original = type(rl)._compute_loss

    def counted(*inputs: Any) -> Any:
        handle = model.register_forward_hook(lambda *_: passes.append(1))
        try:
            return original(*inputs)
        finally:
            handle.remove()

    rl._compute_loss = lambda *inputs: counted(rl, *inputs)
    rl.train()
    assert len(passes) == 2  # two micro-batches, two objectives


def test_more_objectives_cost_backward_passes_and_labels_only(reference: str, tmp_path: Path) -> None:
    from align.models import count_parameters

    rows, ledgers = conflicting_rows(24), []
    for label in ("1,0,0", "0.5,0.2,0.3"):
        ledgers.append(Ledger())
        fit(
            gradient_dpo, gradient_dpo.Config(**DPO), reference=reference, weights=[Weights.parse(label)],
            out=tmp_path / label, comparisons=rows, objectives=THREE, ledger=ledgers[-1],
        )  # fmt: skip
    one, three = ledgers
    parameters = count_parameters(load_model(reference), embeddings=False)
    assert three.tokens == one.tokens > 0
    assert three.flops == pytest.approx(one.flops + 2 * 4 * parameters * one.tokens)
    assert (one.scores_read, three.scores_read) == (24, 72)


# -------------------------------------------------------------------------------------------------- the conflict record


def test_the_record_is_of_the_objectives_gradients(reference: str, tmp_path: Path) -> None:
    rows = conflicting_rows(24)
    trainer, record = dpo_trainer(reference, tmp_path, rows=rows, tau=0.1, combiner="mgda")
    trainer.train()
    apart_KD = dpo_gradients(reference, rows, tau=0.1)
    units_KD = apart_KD / np.linalg.norm(apart_KD, axis=1, keepdims=True)
    report = record.report()
    found = [[report["gradient_cosines"][a][b] for b in NAMES] for a in NAMES]
    assert np.array(found) == pytest.approx(units_KD @ units_KD.T, abs=1e-4)
    assert report["conflicting_steps"] == 1.0
    shares = coefficients(apart_KD @ apart_KD.T, combiner="mgda", weights=W3)
    assert list(report["coefficient_shares"].values()) == pytest.approx(shares.tolist(), abs=1e-3)
    assert [entry["step"] for entry in report["trace"]] == [1]


def test_the_record_by_hand() -> None:
    record = ConflictRecord(("a", "b"))
    record.add(np.array([[1.0, -0.5], [-0.5, 1.0]]), np.array([1.0, 3.0]))
    record.add(np.array([[4.0, 0.0], [0.0, 0.0]]), np.array([0.0, 0.0]))  # b has no direction: no cosine, no conflict
    record.add(np.array([[1.0, 1.0], [1.0, 4.0]]), np.array([0.5, 0.5]))
    report = record.report()
    assert report["gradient_cosines"]["a"]["b"] == pytest.approx((-0.5 + 0.5) / 2)
    assert report["conflicting_steps"] == pytest.approx(1 / 3)
    assert report["coefficient_shares"] == pytest.approx({"a": (0.25 + 0.5) / 3, "b": (0.75 + 0.5) / 3})
    assert ConflictRecord(("a", "b")).report()["gradient_cosines"]["a"]["b"] is None


def test_the_trace_holds_the_steps_between_logs_and_survives_a_checkpoint() -> None:
    from types import SimpleNamespace

    steep, flat = np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([[1.0, 0.5], [0.5, 1.0]])
    first, args = ConflictRecord(("a", "b")), SimpleNamespace(logging_steps=2)
    for number, gram in enumerate((steep, flat), 1):
        first.add(gram, np.ones(2))
        first.on_step_end(args, SimpleNamespace(global_step=number), None)
    second = ConflictRecord(("a", "b"))
    second.on_train_begin(args, SimpleNamespace(stateful_callbacks={"ConflictRecord": first.state()}), None)
    for number in (3, 4):
        second.add(flat, np.ones(2))
        second.on_step_end(args, SimpleNamespace(global_step=number), None)
    report = second.report()
    assert [entry["conflicting_steps"] for entry in report["trace"]] == [0.5, 0.0]
    assert [entry["gradient_cosines"]["a"]["b"] for entry in report["trace"]] == pytest.approx([-0.25, 0.5])
    assert report["conflicting_steps"] == 0.25


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(reference: str, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise Stop

    settings = {"rows": conflicting_rows(24), "batch_size": 6, "combiner": "pcgrad", "save_steps": 2}
    whole, whole_record = dpo_trainer(reference, tmp_path / "whole", **settings)
    whole.train()
    broken, _ = dpo_trainer(reference, tmp_path / "broken", **settings)
    broken.add_callback(Interrupt())
    with pytest.raises(Stop):
        broken.train()
    again, record = dpo_trainer(reference, tmp_path / "broken", **settings)
    again.train(resume_from_checkpoint=True)
    assert record.report() == whole_record.report()
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_gram_matrix_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from align.engines import gradient_step

    monkeypatch.setattr(gradient_step, "_CHUNK", 3)
    rows = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    assert gram_of(rows) == pytest.approx((rows.double() @ rows.double().T).numpy())


# ------------------------------------------------------------------------------------------------- hooks and mistakes


def test_the_hooks_of_trl() -> None:
    """Signatures that align/engines/gradient_step.py relies on."""
    from trl import DPOTrainer, GRPOTrainer, RLOOTrainer

    for trainer, compute in ((DPOTrainer, ["model", "inputs", "return_outputs"]), (GRPOTrainer, ["model", "inputs"])):
        assert list(inspect.signature(trainer._compute_loss).parameters)[1:] == compute
    assert list(inspect.signature(RLOOTrainer._compute_loss).parameters)[1:] == ["model", "inputs"]
    expected = {
        "training_step": ["model", "inputs", "num_items_in_batch"],
        "_generate_and_score_completions": ["inputs"],
        "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    }
    for trainer in (GRPOTrainer, RLOOTrainer):
        for name, parameters in expected.items():
            assert list(inspect.signature(getattr(trainer, name)).parameters)[1:] == parameters


def test_processes_that_split_a_model_are_refused(reference: str, tmp_path: Path) -> None:
    from types import SimpleNamespace

    trainer = SimpleNamespace(accelerator=SimpleNamespace(distributed_type="DistributedType.DEEPSPEED"))
    with pytest.raises(UserError, match="cannot be combined under DEEPSPEED"):
        combine(trainer, Combination("sum", (1.0,), ("one",)))


def test_a_gradient_that_is_not_finite_is_told(reference: str, tmp_path: Path) -> None:
    trainer, _ = dpo_trainer(reference, tmp_path, rows=conflicting_rows(12))
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.inf)
    with pytest.raises(UserError, match="a gradient is not finite"):
        trainer.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combiner": "mean"}, "combiner must be one of sum, mgda, pcgrad, cagrad, nash_mtl, raco, not 'mean'"),
        ({"c": 1.0}, "c must be below 1, not 1"),
        ({"c": -0.5}, "c must be at least 0, not -0.5"),
        ({"labels": "given"}, "given labels are each of one; set labels"),
        ({"mle_weight": 0.1}, "no mle_weight"),
    ],
)
def test_mistakes_of_gradient_dpo(changes: dict[str, Any], message: str, reference: str, tmp_path: Path) -> None:
    config = gradient_dpo.Config(**{**DPO, **changes})
    with pytest.raises(UserError, match=message):
        fit(
            gradient_dpo, config, reference=reference, weights=[Weights((0.5, 0.5))], out=tmp_path,
            comparisons=pair_rows(8),
        )  # fmt: skip


def test_missing_rows_are_told(reference: str, tmp_path: Path) -> None:
    data = {"reference": reference, "weights": [Weights((0.5, 0.5))], "out": tmp_path}
    with pytest.raises(UserError, match="gradient_dpo needs comparisons"):
        fit(gradient_dpo, gradient_dpo.Config(**DPO), **data)
    with pytest.raises(UserError, match="gradient_rl needs prompts"):
        fit(gradient_rl, gradient_rl.Config(**SHORT), **data)


def test_claims_say_what_is_no_optimum_at_w(reference: str) -> None:
    weights = Weights((0.5, 0.5))
    for combiner in COMBINERS:
        pairs = gradient_dpo.describe(gradient_dpo.Config(combiner=combiner), weights=weights)
        samples = gradient_rl.describe(gradient_rl.Config(combiner=combiner), weights=weights)
        assert pairs.startswith("no J at w = 0.5,0.5")  # averaged labels, even by the sum
        assert samples.startswith("no J" if combiner in ("mgda", "pcgrad", "nash_mtl") else "E[w.r]")
        assert "\n" not in pairs + samples
