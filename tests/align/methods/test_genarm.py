"""GenARM: the loss of its reward models, the coefficient that its claim needs, and the guided reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mod import distances, distribution

from align.data.comparisons import annotated_pairs, row_scores
from align.engines import pairs as pair_training
from align.errors import UserError
from align.methods import dpo, genarm
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.policies.mixed import MixedFamily
from align.preferences import Weights
from align.runs import Ledger, open_run
from factories.made_models import reward_model, shifted
from factories.tiny_bandit import (
    BETA,
    OBJECTIVES,
    PAIRS,
    PROMPTS,
    RESPONSES,
    fit,
    kl,
    make_reference,
    next_distribution,
    optimum,
    pair_rows,
    reward,
    same_weights,
    workspace,
)

WEIGHTS = Weights((0.3, 0.7))


# -------------------------------------------------------------------------------------------------------------- decode


@pytest.mark.parametrize("arm_betas", [(1.25, 1.25), (0.4, 2.0)])
def test_the_coefficient_that_gives_the_claimed_optimum(
    arm_betas: tuple[float, float], reference: str, tmp_path: Path
) -> None:
    """ARMs with log-probability r / (tau beta_r) + c guide the reference to `ref exp(w.r / beta)`."""
    beta, tau = 0.5, 0.4
    arms = tuple(
        reward_model(reference, tmp_path / name, name, scale=tau * b)
        for name, b in zip(OBJECTIVES, arm_betas, strict=True)
    )
    config = genarm.Config(beta=beta, tau=tau, arm_betas=arm_betas)
    gains = tuple(config.tau * b / config.beta for b in genarm.arm_betas(config, names=list(OBJECTIVES)))
    if arm_betas[0] == arm_betas[1]:
        assert gains == pytest.approx((1.0, 1.0))  # beta_r = beta / tau
        assert genarm.arm_betas(genarm.Config(beta=beta, tau=tau), names=list(OBJECTIVES)) == pytest.approx(arm_betas)
    family = MixedFamily(method="genarm", base=reference, parts=arms, gains=gains, base_share="whole")
    for weights in (WEIGHTS, Weights((1.0, 0.0))):
        ours, theirs = distances(family.policy(weights), reference, weights, beta)
        assert ours < 1e-6 < 0.02 < theirs
    assert distances(family.policy(WEIGHTS), reference, WEIGHTS, beta / 2)[0] > 0.01


def test_uniform_arms_leave_the_reference_as_it_is(reference: str, tmp_path: Path) -> None:
    uniform = shifted(reference, tmp_path / "uniform", lambda prompt, logits: -logits)
    family = MixedFamily(
        method="genarm", base=reference, parts=(uniform, uniform), gains=(3.0, 0.5), base_share="whole"
    )
    for prompt in PROMPTS:
        assert distribution(family.policy(WEIGHTS), prompt) == pytest.approx(
            next_distribution(reference, prompt), abs=1e-5
        )


def test_untrained_arms_sharpen_the_reference(reference: str) -> None:
    """What an ARM has not learned it says as the model that it started from."""
    family = MixedFamily(method="genarm", base=reference, parts=(reference,) * 2, gains=(1.0, 1.0), base_share="whole")
    squares = [p * p for p in next_distribution(reference, "x :")]
    assert distribution(family.policy(WEIGHTS), "x :") == pytest.approx([s / sum(squares) for s in squares], abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ the loss


def test_the_trained_loss_has_no_reference(reference: str, tmp_path: Path) -> None:
    """DPOTrainer on zeroed columns computes `-log sigmoid(beta_r [log arm(y_w) - log arm(y_l)])`."""
    rows, beta = pair_rows(8), 0.7
    pairs = annotated_pairs(rows, scores=row_scores(rows), weights=Weights((1.0, 0.0)), tau=0.4, seed=0)
    config = dpo.Config(**PAIRS)
    trainer = pair_training.dpo_trainer(pairs, config=config, reference=reference, beta=beta, folder=tmp_path)
    before = [list(trainer.train_dataset[c]) for c in ("ref_chosen_logps", "ref_rejected_logps")]
    trainer.train_dataset = genarm.without_reference(trainer.train_dataset)
    assert set(trainer.train_dataset["ref_chosen_logps"]) == {0.0} and min(map(abs, before[0])) > 0.1
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        found = float(trainer.compute_loss(trainer.model, batch))
    policy = ModelPolicy(reference)
    sides = [
        policy.sequence_logprobs([p.prompt for p in pairs], [getattr(p, side) for p in pairs])
        for side in ("chosen", "rejected")
    ]
    losses = [math.log1p(math.exp(-beta * (won - lost))) for won, lost in zip(*sides, strict=True)]
    assert found == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert abs(found - math.log(2)) > 0.05  # with the reference in it the loss would begin at log 2


# ------------------------------------------------------------------------------------------------------------ the whole


def guided_regrets(policy: Any, reference: str, weights: Weights) -> tuple[float, float]:
    """`beta KL(pi || pi*)` of a policy and the reference among the four responses that pairs hold, over prompts."""
    ours, theirs = [], []
    for prompt in PROMPTS:
        tables = []
        for asked in (policy, ModelPolicy(reference)):
            logp = asked.sequence_logprobs([prompt] * 4, [f" {word}" for word in RESPONSES], max_new_tokens=1)
            total = math.log(sum(math.exp(x) for x in logp))
            tables.append([math.exp(x - total) for x in logp])
        rewards = [sum(w * reward(n, prompt, r) for w, n in zip(weights, OBJECTIVES, strict=True)) for r in RESPONSES]
        best = optimum(tables[1], rewards, beta=BETA)
        ours.append(BETA * kl(tables[0], best))
        theirs.append(BETA * kl(tables[1], best))
    return sum(ours) / len(ours), sum(theirs) / len(theirs)


def test_trained_arms_move_the_reference_to_the_optimum(reference: str, tmp_path: Path) -> None:
    """As far as pairs can say: among the four words that they hold, the word being the whole response."""
    rows, ledger = pair_rows(2000), Ledger()
    config = genarm.Config(**{**PAIRS, "learning_rate": 1e-2, "epochs": 3.0})
    points = [WEIGHTS, Weights((0.8, 0.2))]
    family = fit(
        genarm, config, reference=reference, weights=points, out=tmp_path / "run.partial", comparisons=rows,
        ledger=ledger,
    )  # fmt: skip
    assert ledger.scores_read == 2 * 2000 and ledger.samples_drawn == 0 and ledger.flops > 0
    family.save(tmp_path / "run.partial")
    (tmp_path / "run.partial").rename(tmp_path / "run")
    again = load_family(tmp_path / "run")
    assert again.base == reference and again.base_share == "whole" and again.point_cost == "decode"
    for weights in points:
        policy = again.policy(weights)
        ours, theirs = guided_regrets(policy, reference, weights)
        assert theirs > 0.005 and ours < 0.15 * theirs
        assert ours < guided_regrets(policy, reference, Weights(weights.values[::-1]))[0]
    claim = again.optimises["0.3,0.7"]
    assert "no J" in claim and "powers 0.3,0.7;" in claim and "0.5 KL(pi||ref) at w = 0.3,0.7" in claim
    assert len(policy.generate(list(PROMPTS), max_new_tokens=1, seed=0)) == 2


def test_arms_are_adapters_where_asked_and_are_trained_once(reference: str, tmp_path: Path) -> None:
    rows = pair_rows(48)
    config = genarm.Config(**{**PAIRS, "epochs": 1.0, "batch_size": 16, "lora_r": 2}, arm_betas=(0.2, 0.6))
    family = fit(genarm, config, reference=reference, weights=[WEIGHTS], out=tmp_path, comparisons=rows)
    assert family.gains == pytest.approx((0.4 * 0.2 / 0.5, 0.4 * 0.6 / 0.5))
    views = [component.model for component in family.policy(WEIGHTS).components()]
    assert len(views) == 3 and len({id(view.backbone) for view in views}) == 1
    folders = [tmp_path / "arms" / "points" / label for label in ("1,0", "0,1")]
    times = [(folder / "run.json").stat().st_mtime_ns for folder in folders]
    ledger = Ledger()
    fit(genarm, config, reference=reference, weights=[Weights((0.5, 0.5))], out=tmp_path, comparisons=rows,
        ledger=ledger)  # fmt: skip
    assert [(folder / "run.json").stat().st_mtime_ns for folder in folders] == times  # whatever weights are asked
    assert ledger.scores_read == 2 * 48  # and charged all the same
    assert "likelihood" not in open_run(folders[0]).metrics


def test_each_arm_reads_its_own_labels_and_beta(reference: str, tmp_path: Path) -> None:
    rows = pair_rows(64)
    settings = {**PAIRS, "epochs": 1.0, "batch_size": 16}
    both = fit(
        genarm, genarm.Config(**settings, arm_betas=(0.3, 0.9)), reference=reference, weights=[WEIGHTS],
        out=tmp_path / "both", comparisons=rows,
    )  # fmt: skip
    for k, beta in enumerate((0.3, 0.9)):
        pairs = annotated_pairs(rows, scores=row_scores(rows), weights=Weights.vertex(k, 2), tau=0.4, seed=0)
        pair_training.train_on_pairs(
            pairs, config=dpo.Config(**settings), reference=reference, beta=beta,
            run=workspace(tmp_path / str(k)), shift_reference=genarm.without_reference,
        )  # fmt: skip
        assert same_weights(both.parts[k], str(tmp_path / str(k) / "model"))
    assert not same_weights(*both.parts)


def test_given_labels_and_another_start(reference: str, tmp_path: Path) -> None:
    rows = [
        {"id": f"{name}{i}", "prompt": "x :", "chosen": " A" if name == "one" else " C", "rejected": " D",
         "objective": name}
        for name in OBJECTIVES for i in range(16)
    ]  # fmt: skip
    small = make_reference(tmp_path / "small", seed=5)
    config = genarm.Config(beta=BETA, learning_rate=1e-2, batch_size=16, start=small)
    family = fit(genarm, config, reference=reference, weights=[WEIGHTS], out=tmp_path / "out", comparisons=rows)
    assert family.base == reference and not same_weights(family.parts[0], reference)
    before = next_distribution(small, "x :")
    one, two = (next_distribution(part, "x :") for part in family.parts)
    a, c = 5, 7
    assert one[a] > before[a] and one[a] > two[a] and two[c] > before[c] and two[c] > one[c]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"arm_betas": (0.1,)}, "arm_betas must be 2 numbers above 0"),
        ({"arm_betas": (0.1, 0.0)}, "arm_betas must be 2 numbers above 0"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"tau": 0.0}, "tau and epochs must be above 0"),
        ({"labels": "none"}, "labels must be one of"),
    ],
)
def test_bad_settings_are_told_before_anything_is_trained(
    config: dict[str, Any], message: str, reference: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(genarm, genarm.Config(**config), reference=reference, weights=[WEIGHTS], out=tmp_path,
            comparisons=pair_rows(4))  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_start_of_another_vocabulary_and_missing_pairs_are_told(
    reference: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="different tokenizers"):
        fit(genarm, genarm.Config(start=str(tiny_model)), reference=reference, weights=[WEIGHTS], out=tmp_path,
            comparisons=pair_rows(4))  # fmt: skip
    with pytest.raises(UserError, match="genarm needs comparisons"):
        fit(genarm, genarm.Config(), reference=reference, weights=[WEIGHTS], out=tmp_path)
