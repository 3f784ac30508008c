"""Gradient-level policy gradients, and both methods on two processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.errors import UserError
from align.methods import gradient_rl, morlhf
from align.methods.gradient_rl import advantages_apart
from align.models import load_model
from align.preferences import Weights
from align.runs import Ledger, open_run
from factories.made_gradient_methods import (
    NAMES,
    SHORT,
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
    OBJECTIVES,
    PROMPT_ROWS,
    PROMPTS,
    RL,
    WORDS,
    fit,
    kl,
    next_distribution,
    optimum,
    problem_of,
    reward,
    same_weights,
    scalarised,
    workspace,
)


def morlhf_trainer(
    reference: str, folder: Path, *, objectives: Any = OBJECTIVES, weights: Sequence[float] = (0.3, 0.7), **changes: Any
) -> Any:
    return morlhf.build_trainer(
        morlhf.Config(**{**SHORT, **changes}),
        problem_of(reference, objectives=objectives),
        workspace(folder),
        weights=Weights(weights),
    )


def disturb(model: Any) -> None:
    """Move the policy off its reference in memory, so that the KL has a gradient."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def sometimes(name: str) -> Callable[..., list[float | None]]:
    """The objective, but it does not apply to responses that it gives more than .5."""

    def scores(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [None if s is not None and s > 0.5 else s for s in OBJECTIVES[name](prompts, completions, **columns)]

    return scores


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("partial", [False, True], ids=["all apply", "some do not"])
def test_the_sum_is_morlhfs_update(algorithm: str, partial: bool, reference: str, tmp_path: Path) -> None:
    objectives = {"one": sometimes("one"), "two": sometimes("two")} if partial else OBJECTIVES
    settings = {"objectives": objectives, "algorithm": algorithm, "gradient_accumulation": 2, "batch_size": 12}
    theirs = morlhf_trainer(reference, tmp_path / "m", **settings)
    ours, _ = rl_trainer(reference, tmp_path / "g", combiner="sum", **settings)
    disturb(theirs.model)
    disturb(ours.model)
    expected, found = gradients_of(theirs), gradients_of(ours)
    assert len(found) == 2 and np.linalg.norm(expected[0]) > 1e-3
    assert_close(found[0], expected[0], share=1e-5)
    assert_close(found[1], expected[1], share=1e-3)
    # GRPO's and RLOO's own bookkeeping went on: one count per micro-batch
    assert ours._step == theirs._step == 4


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_gradient_rl_at_a_vertex_is_morlhf_bit_for_bit(algorithm: str, reference: str, tmp_path: Path) -> None:
    vertex, settings = Weights((0.0, 1.0)), {**SHORT, "algorithm": algorithm, "max_grad_norm": 1.0}
    data = {"reference": reference, "weights": [vertex], "prompts": PROMPT_ROWS}
    one, two = Ledger(), Ledger()
    plain = fit(morlhf, morlhf.Config(**settings), out=tmp_path / "m", ledger=one, **data)
    ours = fit(gradient_rl, gradient_rl.Config(**settings, combiner="mgda"), out=tmp_path / "g", ledger=two, **data)
    assert same_weights(plain.points["0,1"], ours.points["0,1"])
    assert not same_weights(ours.points["0,1"], reference)
    assert (one.tokens, one.flops, one.samples_drawn) == (two.tokens, two.flops, two.samples_drawn)
    assert one.scores_read == two.scores_read == 48  # the objective of weight 0 was not asked
    assert ours.optimises["0,1"].startswith("E[w.r] - 0.5 KL")


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("combiner", ["mgda", "raco"])
def test_an_rl_step_combines_the_gradients_of_the_objectives_j(
    combiner: str, algorithm: str, reference: str, tmp_path: Path
) -> None:
    """Against gradients of `E[r_k] - beta KL` from the same samples, by plain forward passes; three objectives."""
    samples: list[tuple[str, int]] = []

    def watching(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        samples.extend(zip(prompts, (ids[0] for ids in columns["completion_ids"]), strict=True))
        return OBJECTIVES["one"](prompts, completions, **columns)

    def third(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [0.1 * ids[0] for ids in columns["completion_ids"]]

    trainer, _ = rl_trainer(
        reference, tmp_path, objectives={"one": watching, "two": OBJECTIVES["two"], "three": third}, weights=W3,
        algorithm=algorithm, combiner=combiner, steps=1,
    )  # fmt: skip
    disturb(trainer.model)
    (found_D,) = gradients_of(trainer)
    policy, frozen = load_model(reference), load_model(reference)
    disturb(policy)
    logp = [word_logp(policy, prompt, [WORDS[word]]) for prompt, word in samples]
    ratio_B = np.array(
        [lp.item() - word_logp(frozen, p, [WORDS[w]]).item() for lp, (p, w) in zip(logp, samples, strict=True)]
    )
    apart = []
    for name in NAMES:
        scores = [0.1 * word if name == "three" else reward(name, prompt, WORDS[word]) for prompt, word in samples]
        value_PG = (np.array(scores) - BETA * ratio_B).reshape(4, 6)
        advantage_PG = value_PG - value_PG.mean(1, keepdims=True)
        if algorithm == "rloo":
            advantage_PG *= 6 / 5
        loss = -sum(a * lp for a, lp in zip(advantage_PG.ravel(), logp, strict=True)) / 24
        apart.append(flat_gradient(loss, policy))
    apart_KD = np.array(apart)
    expected_D = combined(apart_KD, combiner=combiner, weights=W3)
    assert_close(found_D, expected_D, share=1e-3)
    assert np.linalg.norm(expected_D - np.array(W3) @ apart_KD) > 0.05 * np.linalg.norm(expected_D)


def test_advantages_apart_by_hand() -> None:
    nan = math.nan
    # r_1 - w.r = .75 (r_1 - r_2), r_2 - w.r = -.25 (r_1 - r_2), at w = (.25, .75); r_1 - r_2 = 1, 3 | 2, 0
    rewards = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [5.0, 5.0]])
    plain = advantages_apart(rewards, weights=(0.25, 0.75), group=2, leave_one_out=False)
    assert torch.allclose(plain, torch.tensor([[-0.75, 0.25], [0.75, -0.25], [0.75, -0.25], [-0.75, 0.25]]))
    others = advantages_apart(rewards, weights=(0.25, 0.75), group=2, leave_one_out=True)
    assert torch.allclose(others, 2 * plain)
    # a row without any score is left out of its group's mean, one score of two counts the other as 0
    holes = torch.tensor([[2.0, nan], [nan, nan], [0.0, 4.0]])
    found = advantages_apart(holes, weights=(0.5, 0.5), group=3, leave_one_out=False)
    assert torch.allclose(found, torch.tensor([[1.5, -1.5], [0.0, 0.0], [-1.5, 1.5]]))
    alone = torch.tensor([[2.0, 1.0], [nan, nan]])
    assert advantages_apart(alone, weights=(0.5, 0.5), group=2, leave_one_out=True).tolist() == [[0, 0], [0, 0]]
    # further reward functions (the sequence's KL) belong to no objective
    with_kl = torch.cat([rewards, torch.rand(4, 1)], 1)
    assert torch.equal(advantages_apart(with_kl, weights=(0.25, 0.75), group=2, leave_one_out=False), plain)


def regret_share(model: str, reference: str, weights: Sequence[float]) -> float:
    ours, theirs = 0.0, 0.0
    for prompt in PROMPTS:
        ref = next_distribution(reference, prompt)
        best = optimum(ref, scalarised(prompt, weights), beta=BETA)
        ours, theirs = ours + kl(next_distribution(model, prompt), best), theirs + kl(ref, best)
    return ours / theirs


@pytest.mark.parametrize("combiner", ["cagrad", "mgda"])
def test_cagrad_goes_to_the_optimum_at_w_and_mgda_to_that_of_other_weights(
    combiner: str, reference: str, tmp_path: Path
) -> None:
    weights = Weights((0.3, 0.7))
    config = gradient_rl.Config(**RL, combiner=combiner)
    family = fit(gradient_rl, config, reference=reference, weights=[weights], out=tmp_path, prompts=PROMPT_ROWS)
    model, claim = family.points[weights.label], family.optimises[weights.label]
    at = {w: regret_share(model, reference, (w, 1 - w)) for w in np.linspace(0, 0.6, 13).round(3)}
    metrics = open_run(tmp_path / "points" / weights.label).metrics
    assert metrics["conflicting_steps"] > 0.5
    if combiner == "cagrad":
        assert at[0.3] < 0.03 and claim.startswith("E[w.r] - 0.5 KL(pi||ref) at w = 0.3,0.7: gradients of E[r_k]")
    else:
        assert at[0.3] > 0.05 > 0.03 > min(at.values())
        assert "no J at w = 0.3,0.7" in claim and "not at the optimum at w" in claim


# ------------------------------------------------------------------------------------------------------------ processes


def _in_child(work: Callable[..., None], *arguments: Any) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(True)  # the parent may have trained already
    PartialState._reset_state()
    GradientState._reset_state()
    work(*arguments)


def in_two_processes(work: Callable[..., None], *arguments: Any) -> None:
    from accelerate import debug_launcher
    from datasets.fingerprint import get_temporary_cache_files_directory

    get_temporary_cache_files_directory()  # made before the fork, so that both read one cache of reference log-probs
    debug_launcher(_in_child, (work, *arguments), num_processes=2)


def keep(trainer: Any, folder: Path) -> None:
    """Train, and keep the first gradient and the final weights of this process."""
    gradients = gradients_of(trainer)
    weights = torch.cat([p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()])
    name = f"{trainer.accelerator.num_processes}_{trainer.accelerator.process_index}.pt"
    torch.save({"gradient": gradients[0], "weights": weights}, folder / name)


def kept(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"{name}.pt", weights_only=False)


def train_dpo(reference: str, folder: Path, batch_size: int) -> None:
    trainer, _ = dpo_trainer(
        reference, folder, rows=conflicting_rows(24), tau=0.1, combiner="raco", batch_size=batch_size
    )
    keep(trainer, folder)


def test_two_processes_make_the_step_of_one_with_the_whole_batch(reference: str, tmp_path: Path) -> None:
    """The published RACO code averages over no processes: their weights drift apart."""
    in_two_processes(train_dpo, reference, tmp_path, 6)
    train_dpo(reference, tmp_path, 12)
    one, first, second = (kept(tmp_path, name) for name in ("1_0", "2_0", "2_1"))
    assert torch.equal(first["weights"], second["weights"])
    assert_close(first["gradient"], one["gradient"])
    assert torch.allclose(first["weights"], one["weights"], atol=2e-3)
    assert not torch.allclose(one["weights"], torch.zeros(1), atol=2e-3)


def train_rl(reference: str, folder: Path) -> None:
    """MORLHF on each objective alone, then both by MGDA: the first step of each on the same samples."""
    settings = {"batch_size": 12}
    for k, weights in enumerate(((1.0, 0.0), (0.0, 1.0))):
        (folder / f"alone {k}").mkdir(exist_ok=True)
        keep(morlhf_trainer(reference, folder / f"alone {k}", weights=weights, **settings), folder / f"alone {k}")
    (folder / "both").mkdir(exist_ok=True)
    keep(rl_trainer(reference, folder / "both", combiner="mgda", **settings)[0], folder / "both")


def test_two_processes_share_out_rewards_and_average_gradients(reference: str, tmp_path: Path) -> None:
    """Each process draws its own samples; the oracle is TRL's own averaging, one objective at a time."""
    in_two_processes(train_rl, reference, tmp_path)
    alone_KD = np.array([kept(tmp_path / f"alone {k}", "2_0")["gradient"] for k in range(2)])
    ours = [kept(tmp_path / "both", name) for name in ("2_0", "2_1")]
    assert torch.equal(ours[0]["weights"], ours[1]["weights"])
    expected_D = combined(alone_KD, combiner="mgda", weights=(0.3, 0.7))
    assert_close(ours[0]["gradient"], expected_D)
    assert np.linalg.norm(expected_D - np.array([0.3, 0.7]) @ alone_KD) > 0.05 * np.linalg.norm(expected_D)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combiner": "mean"}, "combiner must be one of"),
        ({"algorithm": "ppo"}, "algorithm must be one of rloo, grpo, not 'ppo'"),
        ({"batch_size": 25}, "do not divide into groups"),
    ],
)
def test_mistakes_of_gradient_rl(changes: dict[str, Any], message: str, reference: str, tmp_path: Path) -> None:
    config = gradient_rl.Config(**{**SHORT, **changes})
    with pytest.raises(UserError, match=message):
        fit(gradient_rl, config, reference=reference, weights=[Weights((0.5, 0.5))], out=tmp_path, prompts=PROMPT_ROWS)
