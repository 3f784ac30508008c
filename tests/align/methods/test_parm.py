"""PARM: its loss by hand and through TRL, the adapter's start, what it learns, and the guided reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_genarm import guided_regrets
from test_mod import distribution
from transformers import TrainerCallback

from align.data.comparisons import row_scores
from align.engines import pairs as pair_training
from align.errors import UserError
from align.methods import genarm, parm
from align.policies.base import ModelPolicy, TokenPolicy
from align.policies.conditioned import adapted_layers, load_adapter
from align.policies.guided import GuidedFamily
from align.policies.load import load_family
from align.preferences import Weights
from align.runs import Ledger
from factories.tiny_bandit import (
    BETA,
    OBJECTIVES,
    PAIRS,
    PROMPTS,
    WORDS,
    fit,
    make_reference,
    next_distribution,
    pair_rows,
)

WEIGHTS = Weights((0.3, 0.7))
QUICK = {**PAIRS, "epochs": 1.0, "batch_size": 16, "draws": 1}


def test_the_loss_by_hand() -> None:
    """Margin log 3 at beta 1: sigmoid 3/4. The first won for objective one alone: .2 log(4/3) + .8 log 4."""
    margin, weights = torch.tensor([math.log(3)] * 3), torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.2, 0.8]])
    wins = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    found = parm.arm_loss(margin, wins_BK=wins, weights_BK=weights, beta=1.0)
    expected = [0.2 * math.log(4 / 3) + 0.8 * math.log(4), math.log(4 / 3), math.log(4 / 3)]
    assert found.tolist() == pytest.approx(expected)
    half = parm.arm_loss(margin[:1], wins_BK=wins[:1], weights_BK=weights[1:2], beta=0.5)
    assert half.tolist() == pytest.approx([math.log(1 + 3**-0.5)])


def test_between_the_vertices_it_learns_averaged_labels_not_the_weighted_reward() -> None:
    """Labels won with probability .9 and .3, w even: the loss is least at logit .6 = .405, not (2.197 - .847) / 2."""
    wins, chances = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), [0.27, 0.63, 0.03, 0.07]
    slopes = []
    for margin in (math.log(0.6 / 0.4) / 2, (math.log(9) + math.log(3 / 7)) / 2 / 2):  # at beta 2
        margin_B = torch.full((4,), margin, requires_grad=True)
        losses = parm.arm_loss(margin_B, wins_BK=wins, weights_BK=torch.full((4, 2), 0.5), beta=2.0)
        (losses * torch.tensor(chances)).sum().backward()
        slopes.append(float(margin_B.grad.sum()))
    assert slopes[0] == pytest.approx(0, abs=1e-6) and slopes[1] > 0.05


def built(reference: str, folder: Path, **settings: Any) -> tuple[Any, list[dict[str, Any]], Any]:
    rows, config = pair_rows(12), parm.Config(**{**QUICK, **settings})
    wins = parm.first_wins(rows, scores=row_scores(rows), config=config, count=2)
    return parm.build_trainer(rows, wins=wins, config=config, start=reference, folder=folder), rows, wins


def test_trl_trains_the_loss_of_each_pairs_own_weights_and_labels(reference: str, tmp_path: Path) -> None:
    """The hook on the installed TRL: columns reach the loss, the rows of both responses read the pair's own w."""
    trainer, rows, wins = built(reference, tmp_path, draws=2, arm_beta=0.7)
    layers = adapted_layers(trainer.model)
    assert len(layers) == 7 and all(n.split(".")[-1] in "ABW1W2" for n, p in trainer.model.named_parameters()
                                    if p.requires_grad)  # fmt: skip
    with torch.no_grad():
        for layer in layers.values():
            layer.B.normal_(std=0.5)  # away from the start, where no weight would matter
    dataset = trainer.train_dataset
    assert len(dataset) == 24 and list(dataset["id"]) == [r["id"] for r in rows] * 2
    assert all(abs(sum(w) - 1) < 1e-9 and min(w) >= 0 for w in dataset["weights"])
    assert dataset["weights"][0] != dataset["weights"][12]
    batch = next(iter(trainer.get_train_dataloader()))
    weights, won = batch["weights"].tolist(), batch["wins"].tolist()
    order = {tuple(w): i for i, w in zip(dataset["id"], torch.tensor(list(dataset["weights"])).tolist(), strict=True)}
    chosen = [order[tuple(w)] for w in weights]
    assert [wins[i] for i in chosen] == won and {tuple(w) for w in won} > {(1.0, 0.0)}
    with torch.no_grad():
        found = float(trainer.compute_loss(trainer.model, dict(batch)))
    parm.save_adapter(trainer.model, parm.adapter_of(parm.Config(**QUICK), count=2), tmp_path / "a", base=reference)
    by_id, losses = {row["id"]: row for row in rows}, []
    model, asked = load_adapter(tmp_path / "a", base=reference)
    for i, w, s in zip(chosen, weights, won, strict=True):
        asked.set([w])
        first, second = (log_prob(model, by_id[i]["prompt"], by_id[i][side]) for side in "ab")
        losses.append(sum(
            wk * math.log1p(math.exp(-0.7 * (first - second) * (1 if sk else -1))) for wk, sk in zip(w, s, strict=True)
        ))  # fmt: skip
    assert found == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert len({round(loss, 3) for loss in losses}) > 3


def log_prob(model: Any, prompt: str, reply: str) -> float:
    """log p of a reply and its end token, from one plain pass."""
    ids = [WORDS.index(word) for word in f"{prompt}{reply} <end>".split()]
    head = len(prompt.split())
    with torch.no_grad():
        table = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(table[t - 1, ids[t]]) for t in range(head, len(ids)))


def test_at_a_vertex_the_loss_is_that_of_genarm(reference: str, tmp_path: Path) -> None:
    """w = e_k leaves objective k's labels alone: the same number as DPOTrainer on its pairs without a reference."""
    from align.data.comparisons import annotated_pairs
    from align.methods import dpo

    trainer, rows, _ = built(reference, tmp_path / "p")
    batch = next(iter(trainer.get_train_dataloader()))
    for k in range(2):
        weights = torch.zeros_like(batch["weights"])
        weights[:, k] = 1.0
        with torch.no_grad():
            ours = float(trainer.compute_loss(trainer.model, {**batch, "weights": weights}))
        pairs = annotated_pairs(rows, scores=row_scores(rows), weights=Weights.vertex(k, 2), tau=0.4, seed=0)
        other = pair_training.dpo_trainer(
            pairs, config=dpo.Config(**{k: v for k, v in QUICK.items() if k != "draws"}), reference=reference,
            beta=BETA / 0.4, folder=tmp_path / str(k),
        )  # fmt: skip
        other.train_dataset = genarm.without_reference(other.train_dataset)
        with torch.no_grad():
            theirs = float(other.compute_loss(other.model, next(iter(other.get_train_dataloader()))))
        assert ours == pytest.approx(theirs, abs=1e-5)  # the adapter starts at no change


def test_one_arm_guides_at_every_preference(reference: str, tmp_path: Path) -> None:
    rows, ledger = pair_rows(1000), Ledger()
    config = parm.Config(**{**PAIRS, "learning_rate": 2e-2, "batch_size": 32})
    points = [Weights((1.0, 0.0)), Weights((0.5, 0.5)), Weights((0.0, 1.0))]
    family = fit(parm, config, reference=reference, weights=points, out=tmp_path / "run.partial", comparisons=rows,
                 ledger=ledger)  # fmt: skip
    assert ledger.scores_read == 2 * 1000 and ledger.samples_drawn == 0 and ledger.flops > 0
    assert ledger.tokens > 2 * 3 * 1000 * 2 * 4  # draws x epochs x pairs x responses x their fewest tokens
    family.save(tmp_path / "run.partial")
    (tmp_path / "run.partial").rename(tmp_path / "run")
    again = load_family(tmp_path / "run")
    assert isinstance(again, GuidedFamily) and again.point_cost == "decode" and again.method == "parm"
    assert again.domain == "all weights of 2 objectives" and again.gain == pytest.approx(1.0)
    for weights in points:
        policy = again.policy(weights)
        assert isinstance(policy, TokenPolicy) and policy.name == f"parm@{weights.label}"
        ours, theirs = guided_regrets(policy, reference, weights)
        assert theirs > 0.005 and ours < 0.35 * theirs
        if weights.is_vertex:
            assert ours < guided_regrets(policy, reference, Weights(weights.values[::-1]))[0]
    assert len(policy.generate(list(PROMPTS), max_new_tokens=1, seed=0)) == 2
    assert "E[w.r] - 0.5 KL(pi||ref)" in again.optimises["1,0"] and "not w.r" in again.optimises["0.5,0.5"]
    with pytest.raises(UserError, match="answers 2 weights"):
        again.policy(Weights((0.5, 0.25, 0.25)))


def test_the_guided_distribution_is_the_reference_times_the_arm(reference: str, tmp_path: Path) -> None:
    config = parm.Config(**QUICK, arm_beta=0.5)
    family = fit(parm, config, reference=reference, weights=[WEIGHTS], out=tmp_path, comparisons=pair_rows(48))
    assert family.gain == pytest.approx(0.4 * 0.5 / 0.5)
    arm = ModelPolicy(family.arms.policy(WEIGHTS).path)
    for prompt in PROMPTS:
        tables = [torch.tensor(p).log() for p in (next_distribution(reference, prompt), distribution(arm, prompt))]
        expected = (tables[0] + 0.4 * tables[1]).softmax(-1).tolist()
        assert distribution(family.policy(WEIGHTS), prompt) == pytest.approx(expected, abs=1e-5)
    model, asked = load_adapter(tmp_path / "arm" / "adapter", base=reference)
    asked.set([list(WEIGHTS)])
    ids = torch.tensor([[2, 4]])
    with torch.no_grad():
        told = model(input_ids=ids).logits[0, -1].softmax(-1)
    assert distribution(arm, "x :") == pytest.approx(told.tolist(), abs=1e-5)
    other = ModelPolicy(family.arms.policy(Weights((0.9, 0.1))).path)
    assert distribution(other, "x :") != pytest.approx(told.tolist(), abs=1e-4)  # it does read its preference


def test_an_interrupted_arm_resumes_to_the_same_weights(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    config = parm.Config(**{**QUICK, "draws": 2}, save_steps=3)
    arguments: dict[str, Any] = {"reference": reference, "weights": [WEIGHTS], "comparisons": pair_rows(64)}
    fit(parm, config, out=tmp_path / "whole", **arguments)

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    build = parm.build_trainer

    def killed(*a: Any, **k: Any) -> Any:
        trainer = build(*a, **k)
        trainer.add_callback(Kill())
        return trainer

    monkeypatch.setattr(parm, "build_trainer", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(parm, config, out=tmp_path / "cut", **arguments)
    assert list((tmp_path / "cut" / "arm.partial" / "checkpoints").glob("checkpoint-3"))
    monkeypatch.undo()
    ledger = Ledger()
    fit(parm, config, out=tmp_path / "cut", ledger=ledger, **arguments)
    files = [tmp_path / name / "arm" / "adapter" / "conditioned.safetensors" for name in ("whole", "cut")]
    whole, cut = (load_file(file) for file in files)
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    stamp = files[1].stat().st_mtime_ns
    again = Ledger()
    fit(parm, config, out=tmp_path / "cut", ledger=again, **arguments)
    assert files[1].stat().st_mtime_ns == stamp  # reused, whatever weights are asked for, and charged all the same
    assert (again.tokens, again.scores_read) == (ledger.tokens, ledger.scores_read) and again.scores_read == 2 * 64


def test_three_objectives(reference: str, tmp_path: Path) -> None:
    rows = [{**r, "scores_a": [*r["scores_a"], 5.0], "scores_b": [*r["scores_b"], -5.0]} for r in pair_rows(32)]
    wins = parm.first_wins(rows, scores=row_scores(rows), config=parm.Config(**QUICK), count=3)
    assert all(won[2] == 1.0 for won in wins.values())  # 10 reward units ahead of the other
    assert {won[0] for won in wins.values()} == {0.0, 1.0}
    family = fit(parm, parm.Config(**QUICK), reference=reference, weights=[Weights((0.2, 0.3, 0.5))], out=tmp_path,
                 comparisons=rows, objectives={**OBJECTIVES, "three": OBJECTIVES["one"]})  # fmt: skip
    assert sum(distribution(family.policy(Weights((0.2, 0.3, 0.5))), "x :")) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"labels": "given"}, "given labels follow one objective"),
        ({"lora_r": 2}, "set rank, not lora_r"),
        ({"mle_weight": 0.1}, "leave out mle_weight"),
        ({"arm_beta": -1.0}, "arm_beta must be at least 0"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"dirichlet": 0.0}, "dirichlet must be above 0"),
        ({"rank": 0}, "rank"),
        ({"beta": 0.0}, "beta must be above 0"),
    ],
)
def test_bad_settings_are_told_before_anything_is_trained(
    config: dict[str, Any], message: str, reference: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(parm, parm.Config(**config), reference=reference, weights=[WEIGHTS], out=tmp_path,
            comparisons=pair_rows(4))  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_models_without_linear_layers_are_told(tmp_path: Path) -> None:
    gpt2 = make_reference(tmp_path / "gpt2", architecture="gpt2")
    with pytest.raises(UserError, match="no linear layer"):
        fit(parm, parm.Config(**QUICK), reference=gpt2, weights=[WEIGHTS], out=tmp_path / "out",
            comparisons=pair_rows(8))  # fmt: skip
