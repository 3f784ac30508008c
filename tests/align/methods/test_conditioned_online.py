"""MO-ODPO and conditioned RL: fresh pairs, weights of a step, the KL without tags, and the optimum."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.engines.tagged import Response
from align.errors import UserError
from align.methods import conditioned_rl, mo_odpo
from align.models import load_model, load_tokenizer
from align.models.formats import formatter
from align.policies.base import ModelPolicy
from align.policies.tagged import Tags, tagged_checkpoint
from align.preferences import Weights
from align.runs import Ledger, open_run
from factories.made_conditioned_methods import MIDDLE, ONLINE, TAGS
from factories.tagged_bandit import VERTEX_AND_MIDDLE, Recorder, killed_at, mean_reward, recorders, share
from factories.tiny_bandit import (
    BETA,
    OBJECTIVES,
    PROMPT_ROWS,
    PROMPTS,
    RL,
    WORDS,
    fit,
    make_reference,
    problem_of,
    reward,
    same_weights,
    workspace,
)


@pytest.fixture(scope="module")
def start(many_tokens: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tagged_checkpoint(many_tokens, tags=TAGS, out=tmp_path_factory.mktemp("tagged") / "model")


# ------------------------------------------------------------------------------------------------------------- MO-ODPO


def response(ids: tuple[int, ...], *scores: float) -> Response:
    return Response("p", ids, scores)


def test_the_label_is_the_sign_of_w_times_the_difference() -> None:
    a, b, rng = response((5,), 1.0, 0.0), response((6,), 0.0, 0.5), np.random.default_rng(0)
    for w, first in (((1.0, 0.0), True), ((0.0, 1.0), False), ((0.5, 0.5), True), ((0.2, 0.8), False)):
        assert mo_odpo.label(a, b, weights=Weights(w), tau=0.0, rng=rng) is first
        assert mo_odpo.label(b, a, weights=Weights(w), tau=0.0, rng=rng) is not first
    assert mo_odpo.label(a, replace(b, scores=(1.0, 0.0)), weights=Weights((0.5, 0.5)), tau=0.0, rng=rng) is None
    assert mo_odpo.label(a, a, weights=Weights((0.5, 0.5)), tau=0.2, rng=rng) is None  # the same response twice
    assert mo_odpo.label(a, replace(b, scores=(1.0, 0.0)), weights=Weights((0.5, 0.5)), tau=0.2, rng=rng) is not None


def test_the_annotator_of_mo_odpo_follows_the_weighted_difference() -> None:
    a, b, rng = response((5,), 1.0, 0.0), response((6,), 0.0, 1.0), np.random.default_rng(0)
    # w . (r_a - r_b) = .25 - .75 = -.5; / .25 = -2; sigmoid(-2) = .1192
    wins = [mo_odpo.label(a, b, weights=Weights((0.25, 0.75)), tau=0.25, rng=rng) for _ in range(4000)]
    assert sum(wins) / 4000 == pytest.approx(0.1192, abs=0.02)  # type: ignore[arg-type]


def online_trainer(
    reference: str, folder: Path, objectives: Any = None, prompts: Any = PROMPT_ROWS, **changes: Any
) -> tuple[Any, Any, Ledger]:
    ledger, config = Ledger(), mo_odpo.Config(**{**ONLINE, **changes})
    start = tagged_checkpoint(reference, tags=TAGS, out=folder / "start")
    problem = problem_of(reference, objectives=objectives or OBJECTIVES, prompts=prompts)
    trainer, source = mo_odpo.build_trainer(config, problem, workspace(folder, ledger), start=start, tags=TAGS)
    return trainer, source, ledger


def test_ties_are_drawn_anew_and_counted(reference: str, tmp_path: Path) -> None:
    """Four words of nine have rewards, so that many pairs are ties at tau 0; the round is full all the same."""
    trainer, source, ledger = online_trainer(reference, tmp_path)
    pairs, ties = source.draw(0, trainer.model)
    assert len(pairs) == 64 and ties > 5
    assert ledger.samples_drawn == 2 * (64 + ties) and ledger.scores_read == 2 * ledger.samples_drawn
    for pair in pairs:
        gains = [
            sum(w * reward(n, pair.prompt, WORDS[ids[0]]) for w, n in zip(pair.values, OBJECTIVES, strict=True))
            for ids in (pair.chosen, pair.rejected)
        ]
        assert gains[0] > gains[1]
    constant = {name: (lambda prompts, *_, **__: [1.0] * len(prompts)) for name in OBJECTIVES}
    with pytest.raises(UserError, match=r"were ties and 0 not"):
        online_trainer(reference, tmp_path, constant)[1].draw(0, trainer.model)


def test_every_round_trains_on_fresh_pairs_of_the_current_policy(reference: str, tmp_path: Path) -> None:
    """The contract with TRL: `on_epoch_begin` comes before an epoch's rows are read, which they are in every epoch."""
    trainer, source, ledger = online_trainer(reference, tmp_path, recorders(), tau=0.4)
    assert trainer.beta == BETA / 0.4
    drawn: list[Any] = []
    fed: list[list[int]] = []
    plain_draw, plain_loss = source.draw, trainer._compute_loss

    def draw(number: int, model: Any) -> Any:
        made = plain_draw(number, model)
        drawn.append((number, sum(p.sum().item() for p in model.parameters()), made[0]))
        return made

    def loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        fed.append(sorted(map(tuple, inputs["input_ids"].tolist())))
        return plain_loss(model, inputs, *args, **kwargs)

    source.draw, trainer._compute_loss = draw, loss
    trainer.train()
    assert [number for number, _, _ in drawn] == [0, 1, 2] and trainer.state.global_step == 3
    assert len({weights for _, weights, _ in drawn}) == 3  # the policy moved between rounds
    for (_, _, pairs), batch in zip(drawn, fed, strict=True):
        form = formatter(load_tokenizer(tmp_path / "start"))
        heads = [form.prompt_ids(TAGS.apply(p.prompt, p.values)) for p in pairs]
        rows = [h + list(ids) for h, p in zip(heads, pairs, strict=True) for ids in (p.chosen, p.rejected)]
        width = max(map(len, rows))
        assert batch == sorted(tuple(row + [0] * (width - len(row))) for row in rows)


def test_mo_odpo_resumes_within_its_rounds_to_the_same_weights(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mo_odpo.Config(**{**ONLINE, "rounds": 4, "batch_size": 32, "save_steps": 3, "tau": 0.4})  # 2 steps a round
    whole = fit(mo_odpo, config, reference=reference, weights=MIDDLE, out=tmp_path / "w", prompts=PROMPT_ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(mo_odpo.FreshPairs, "draw", killed_at(3, mo_odpo.FreshPairs.draw))
        with pytest.raises(KeyboardInterrupt):
            fit(mo_odpo, config, reference=reference, weights=MIDDLE, out=tmp_path / "c", prompts=PROMPT_ROWS)
    partial = tmp_path / "c" / "conditioned.partial"
    assert (partial / "checkpoints" / "checkpoint-3").is_dir()  # in the middle of the second round
    assert json.loads((partial / mo_odpo.ROUND_FILE).read_text())["round"] == 1
    again = fit(mo_odpo, config, reference=reference, weights=MIDDLE, out=tmp_path / "c", prompts=PROMPT_ROWS)
    assert same_weights(whole.model, again.model)


def test_mo_odpo_moves_to_the_optimum_of_every_weight(reference: str, tmp_path: Path) -> None:
    objectives, ledger = recorders(), Ledger()
    config = mo_odpo.Config(
        **{**ONLINE, "rounds": 30, "pairs": 256, "batch_size": 128, "tau": 0.4, "scheduler": "linear"}, alpha=0.7
    )
    family = fit(
        mo_odpo, config, reference=reference, weights=VERTEX_AND_MIDDLE, out=tmp_path, prompts=PROMPT_ROWS,
        objectives=objectives, ledger=ledger,
    )  # fmt: skip
    shares = [share(family.policy(w), reference, w) for w in VERTEX_AND_MIDDLE]
    assert max(shares) < 0.45 and sum(shares) < 0.7, shares
    one = [mean_reward(family.policy(w), "one") for w in VERTEX_AND_MIDDLE]
    two = [mean_reward(family.policy(w), "two") for w in VERTEX_AND_MIDDLE]
    assert one[0] > one[2] + 0.02 and two[2] > two[0] + 0.02
    for objective in objectives.values():
        assert set(objective.prompts) == set(PROMPTS)
    assert ledger.samples_drawn >= 2 * 30 * 256 and ledger.scores_read == 2 * ledger.samples_drawn
    assert open_run(tmp_path / "conditioned").metrics["ties_dropped"] > 0
    assert not (tmp_path / "conditioned" / mo_odpo.ROUND_FILE).exists()


def test_mo_odpo_says_when_beta_has_no_scale() -> None:
    assert "no J in reward units" in mo_odpo.describe(mo_odpo.Config())
    assert "annotator of temperature 0.2 (DPO beta 0.5)" in mo_odpo.describe(mo_odpo.Config(tau=0.2))


# ------------------------------------------------------------------------------------------------------ conditioned RL


def rl_trainer(reference: str, folder: Path, objectives: Any = None, **changes: Any) -> Any:
    settings = {**RL, "steps": 2, "batch_size": 64, "num_generations": 8, "levels": 10, **changes}
    config = conditioned_rl.Config(**settings)
    names = list(objectives or OBJECTIVES)
    tags = Tags(tuple(names), levels=10, tokens=True)
    start = tagged_checkpoint(reference, tags=tags, out=folder / "start")
    problem = problem_of(reference, objectives=objectives or OBJECTIVES)
    trainer = conditioned_rl.build_trainer(config, problem, workspace(folder), start=start, tags=tags)
    return trainer, tags


def test_a_step_s_weights_are_spread_evenly_and_each_prompt_says_its_own(reference: str, tmp_path: Path) -> None:
    trainer, tags = rl_trainer(reference, tmp_path, steps=5, vertices=0.0)
    rows = trainer.train_dataset
    assert len(rows) == 5 * 8
    for start in range(0, 40, 8):
        assert sorted(int(w[0] * 8) for w in rows["w"][start : start + 8]) == list(range(8))
    for row in rows:
        assert tags.values(row["prompt"]) == tags.rounded(row["w"])
        assert tags.strip(row["prompt"]) in PROMPTS and sum(row["w"]) == pytest.approx(1.0)
    assert {tags.strip(p) for p in rows["prompt"]} == set(PROMPTS)


def test_group_rows_share_one_w_and_objectives_see_no_tags(reference: str, tmp_path: Path) -> None:
    """P-MORL's bug was a reward that never saw the response; MO-ODPO's trap is one that sees the tags."""
    objectives = recorders()
    trainer, tags = rl_trainer(reference, tmp_path, objectives)
    seen: list[Any] = []
    total = trainer.reward_funcs[0]
    plain = type(total).__call__

    def spying(self: Any, prompts: Any, completions: Any, **columns: Any) -> Any:
        result = plain(self, prompts, completions, **columns)
        seen.append((list(prompts), columns["w"], columns["completion_ids"], result))
        return result

    try:
        type(total).__call__ = spying
        trainer.train()
    finally:
        type(total).__call__ = plain
    assert len(seen) == 2
    for prompts, w, ids, sums in seen:
        for i in range(0, 64, 8):
            assert len({tuple(x) for x in w[i : i + 8]}) == 1 == len(set(prompts[i : i + 8]))
        for prompt, w_K, row, total_reward in zip(prompts, w, ids, sums, strict=True):
            plain_prompt, word = tags.strip(prompt), WORDS[row[0]]  # no tag token among the samples, or no such word
            expected = sum(x * reward(n, plain_prompt, word) for x, n in zip(w_K, OBJECTIVES, strict=True))
            assert total_reward == pytest.approx(expected, abs=1e-6)
            assert tags.values(prompt) == tags.rounded(w_K)
    for objective in objectives.values():
        assert set(objective.prompts) == set(PROMPTS)


def test_objectives_are_read_once_and_logged_each_with_weight_0(reference: str, tmp_path: Path) -> None:
    objectives = recorders()
    ledger, config = Ledger(), conditioned_rl.Config(**{**RL, "steps": 2, "logging_steps": 1})
    family = fit(
        conditioned_rl, config, reference=reference, weights=MIDDLE, out=tmp_path, prompts=PROMPT_ROWS,
        objectives=objectives, ledger=ledger,
    )  # fmt: skip
    assert ledger.samples_drawn == 2 * 96 and ledger.scores_read == 2 * 2 * 96
    assert all(len(objective.prompts) == 2 * 96 for objective in objectives.values())
    means = open_run(tmp_path / "conditioned").metrics
    for name, objective in objectives.items():
        last = objective.inner(
            objective.prompts[96:], objective.completions[96:], completion_ids=objective.columns[-1]["completion_ids"]
        )
        assert means[f"rewards/{name}/mean"] == pytest.approx(sum(last) / 96, abs=1e-5)
    assert "rewards/weighted_sum/mean" in means
    assert "sequence KL in the reward" in family.optimises["0.5,0.5"]


def test_the_parts_refuse_completions_that_the_sum_has_not_scored() -> None:
    total = conditioned_rl.WeightedSum([], tags=TAGS)
    total.objectives = [Recorder("one")]
    total.objectives[0].last = [1.0]
    (part,) = total.parts()
    with pytest.raises(RuntimeError, match="must be asked first"):
        part(["p"], ["never seen"])


def test_an_objective_that_does_not_apply_counts_as_its_groups_mean() -> None:
    class Given:
        def __init__(self, scores: list[float | None]) -> None:
            self.__name__, self.last = "given", scores

        def __call__(self, *_: Any, **__: Any) -> list[float | None]:
            return self.last

    total = conditioned_rl.WeightedSum([Given([1.0, None, None]), Given([2.0, 4.0, None])], tags=TAGS)
    told = [TAGS.apply("x :", (0.25, 0.75))] * 3
    assert total(told, ["A"] * 3, w=[[0.25, 0.75]] * 3) == [1.75, 3.25, 0.25 * 1.0 + 0.75 * 3.0]


def test_the_sequence_kl_is_against_the_reference_without_tags_and_without_tag_tokens(
    many_tokens: str, tmp_path: Path
) -> None:
    trainer, tags = rl_trainer(many_tokens, tmp_path, max_completion_length=3)
    penalty = trainer.reward_funcs[-1]
    assert trainer.reward_weights.tolist() == [1.0, 0.0, 0.0, -BETA] and penalty.__name__ == "sequence_kl"
    assert trainer.beta == 0.0 and trainer.scale_rewards == "none"
    told = tags.apply("x :", (0.3, 0.7))
    (got,) = penalty([told], [""], completion_ids=[[5, 6, 1]])
    head = load_tokenizer(tmp_path / "start")(told)["input_ids"]
    with torch.no_grad():
        logits = load_model(tmp_path / "start")(input_ids=torch.tensor([[*head, 5, 6, 1]])).logits[0, :, : len(WORDS)]
    ours = sum(logits.log_softmax(-1)[len(head) - 1 + i, t].item() for i, t in enumerate((5, 6, 1)))
    (theirs,) = ModelPolicy(many_tokens).sequence_logprobs(["x :"], [" A B"])
    assert got == pytest.approx(ours - theirs, abs=1e-4)
    assert abs(got) > 1e-3


def test_banned_tag_tokens_are_never_sampled_and_grpo_reads_the_law_without_them(
    many_tokens: str, tmp_path: Path
) -> None:
    """The contract with TRL: the bias of the output head holds in its sampler and in its fused loss alike."""
    trainer, _ = rl_trainer(many_tokens, tmp_path, max_completion_length=4, batch_size=256, num_generations=64)
    raw = load_model(tmp_path / "start")
    with torch.no_grad():
        raw_mass = raw(input_ids=torch.tensor([[2, 4]])).logits[0, -1].softmax(-1)[len(WORDS) :].sum()
    assert raw_mass > 0.01  # without the bias some of some 1,000 sampled tokens would be tags
    batch = next(iter(trainer.get_train_dataloader()))
    output = trainer._generate_and_score_completions(batch)
    drawn = output["completion_ids"][output["completion_mask"].bool()]
    assert len(drawn) > 500 and drawn.max() < len(WORDS)
    for row in range(0, 256, 50):
        head = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
        tail = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
        with torch.no_grad():
            logits = raw(input_ids=torch.tensor([head + tail])).logits[0, :, : len(WORDS)]
            logp = logits.log_softmax(-1)
            got, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, torch.tensor([head + tail]), torch.ones(1, len(head + tail)), len(tail)
            )[:2]
        expected = [logp[len(head) - 1 + i, t].item() for i, t in enumerate(tail)]
        assert got[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_conditioned_rl_reaches_small_regret_at_three_weights_with_one_run(reference: str, tmp_path: Path) -> None:
    ledger, config = Ledger(), conditioned_rl.Config(**{**RL, "steps": 80}, levels=10)
    family = fit(
        conditioned_rl, config, reference=reference, weights=VERTEX_AND_MIDDLE, out=tmp_path, prompts=PROMPT_ROWS,
        ledger=ledger,
    )  # fmt: skip
    assert ledger.samples_drawn == 80 * 96  # one run
    for weights in VERTEX_AND_MIDDLE:
        mine = share(family.policy(weights), reference, weights)
        assert mine < 0.05, (weights.label, mine)
        for other in VERTEX_AND_MIDDLE:
            if other != weights:
                assert share(family.policy(other), reference, weights) > 2 * mine
    one = [mean_reward(family.policy(w), "one") for w in VERTEX_AND_MIDDLE]
    two = [mean_reward(family.policy(w), "two") for w in VERTEX_AND_MIDDLE]
    assert one[0] > one[1] + 0.02 > one[2] + 0.04 and two[0] + 0.04 < two[1] + 0.02 < two[2]


def test_conditioned_rl_is_a_function_of_its_seed_and_takes_three_objectives(reference: str, tmp_path: Path) -> None:
    objectives = {**OBJECTIVES, "three": Recorder("three", lambda p, texts, **_: [float(len(t)) for t in texts])}
    models = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = conditioned_rl.Config(**{**RL, "steps": 2}, seed=seed)
        family = fit(
            conditioned_rl, config, reference=reference, weights=[Weights((0.2, 0.3, 0.5))], out=tmp_path / name,
            prompts=PROMPT_ROWS, objectives=objectives,
        )  # fmt: skip
        models.append(family.model)
    assert same_weights(models[0], models[1]) and not same_weights(models[0], models[2])
    assert family.policy(Weights((0.2, 0.3, 0.5))).values == (0.2, 0.3, 0.5)


def test_lora_s_reference_is_the_untagged_backbone(many_tokens: str, tmp_path: Path) -> None:
    trainer, tags = rl_trainer(many_tokens, tmp_path, max_completion_length=3, lora_r=2)
    told = tags.apply("x :", (0.3, 0.7))
    (before,) = trainer.reward_funcs[-1]([told], [""], completion_ids=[[5, 6, 1]])
    full, _ = rl_trainer(many_tokens, tmp_path / "full", max_completion_length=3)
    (expected,) = full.reward_funcs[-1]([told], [""], completion_ids=[[5, 6, 1]])
    assert before == pytest.approx(expected, abs=1e-4)  # the fresh adapter changes nothing, and tags have no mass


def test_learned_positions_and_text_tags_of_several_lengths_are_refused(tmp_path: Path) -> None:
    """As text, "0.5" and "1" differ in tokens: TRL would train a GPT-2 at other positions than it samples."""
    reference = make_reference(tmp_path / "gpt2", architecture="gpt2")
    tags = Tags(("one", "two"), levels=4, tokens=True)
    start = tagged_checkpoint(reference, tags=tags, out=tmp_path / "start")
    config = conditioned_rl.Config(**{**RL, "steps": 1})
    with pytest.raises(UserError, match="learned positions"):
        conditioned_rl.build_trainer(config, problem_of(reference), workspace(tmp_path), start=start, tags=tags)
