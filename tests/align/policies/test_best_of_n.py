"""Best-of-n: its law in closed form against enumeration, its policy, its family on disk, and what it is charged for."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.errors import UserError
from align.methods import METHODS, best_of_n
from align.models.sampling import Drawn
from align.objectives import Length, RewardModelObjective
from align.policies import load as families
from align.policies.base import ModelPolicy, Policy, PolicyFamily
from align.policies.best_of_n import BestOfNFamily, BestOfNPolicy, WeightedScore, kl_bound, ranking, weighted_sums
from align.preferences import Weights
from align.runs import Ledger
from align.testbed.answers import ReferenceTables
from align.testbed.exact import ExactModel, outcome
from align.testbed.tabular import HardBestOfN, gold_table, hard_best_of_n_gain
from align.testbed.world import World
from evals.measure.sampling import Point, Sampling, sample_answers
from factories import tiny_world
from factories.tiny_bandit import OBJECTIVES, PROMPTS, WORDS, fit, next_distribution, reward, scalarised
from recipes.commands import evaluate, finetune

BOTH = Weights((0.3, 0.7))


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.KINDS, "best_of_n", BestOfNFamily)
    monkeypatch.setitem(METHODS, "best_of_n", best_of_n)


# ------------------------------------------------------------------------------------------------- the law, exactly


def by_enumeration(probability: Sequence[float], rewards: Sequence[float], *, n: int) -> list[float]:
    """The law of the winner: every ordered tuple of draws, its equals each winning as often."""
    law = [0.0] * len(probability)
    for drawn in itertools.product(range(len(probability)), repeat=n):
        chance = math.prod(probability[i] for i in drawn)
        best = [i for i in drawn if rewards[i] == max(rewards[j] for j in drawn)]
        for i in best:
            law[i] += chance / len(best)
    return law


class Table:
    """A distribution over three leaves as a tree policy."""

    name, samples_per_response = "table", 1

    def __init__(self, probability: Sequence[float]) -> None:
        self.leaf_NV = torch.tensor([list(probability)], dtype=torch.float64).log()

    def leaf_logprobs(self, world: Any, prompt: Any) -> torch.Tensor:
        return self.leaf_NV


def law_of(probability: Sequence[float], rewards: Sequence[float], *, n: int) -> list[float]:
    table_NV = torch.tensor([list(rewards)], dtype=torch.float64)
    policy = HardBestOfN(Table(probability), lambda world, prompt: table_NV, n, "hard")  # type: ignore[arg-type]
    return policy.leaf_logprobs(None, None).exp()[0].tolist()  # type: ignore[arg-type]


P = (0.5, 0.3, 0.2)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("rewards", [(0.0, 0.4, 1.0), (1.0, 0.4, 0.0), (0.4, 1.0, 0.4), (0.7, 0.7, 0.7)])
def test_the_law_is_that_of_all_tuples_of_draws(n: int, rewards: tuple[float, ...]) -> None:
    """Without ties, with ties below the best, and with all equal."""
    assert law_of(P, rewards, n=n) == pytest.approx(by_enumeration(P, rewards, n=n), abs=1e-14)


def test_the_law_of_two_draws_by_hand() -> None:
    """F = .5, .8, 1 over rising rewards: .25, .64 - .25, 1 - .64. A tie of the last two shares .75 as 3 to 2."""
    assert law_of(P, (0.0, 0.5, 1.0), n=2) == pytest.approx([0.25, 0.39, 0.36])
    assert law_of(P, (0.0, 1.0, 1.0), n=2) == pytest.approx([0.25, 0.45, 0.30])


def test_rounding_does_not_break_a_tie() -> None:
    """.1 + .2 and .3 are one reward, in the closed form and in the policy's sum alike."""
    assert 0.1 + 0.2 != 0.3
    assert law_of(P, (0.0, 0.1 + 0.2, 0.3), n=2) == pytest.approx([0.25, 0.45, 0.30])
    rounded = weighted_sums({"a": [0.1, 0.3], "b": [0.2, 0.0]}, weights={"a": 1.0, "b": 1.0}, prompts=["p", "p"])
    assert rounded[0] == rounded[1]


def test_a_class_of_tiny_mass_keeps_its_likelihood_ratio() -> None:
    """F^n - G^n loses a class of mass 1e-18 altogether; its ratio is n F^{n-1}, here 8 at the top and 0.5^7 * 8 at .5.

    The lowest of three classes has F^{n-1} = .5^7.
    """
    mass_C = torch.tensor([0.5, 1e-18, 0.5, 1e-18], dtype=torch.float64)
    gain_C = hard_best_of_n_gain(mass_C, n=8).tolist()
    assert gain_C == pytest.approx([0.5**7, 8 * 0.5**7, (1 - 0.5**8) / 0.5, 8.0])
    with pytest.raises(ValueError, match="n >= 1"):
        hard_best_of_n_gain(mass_C, n=0)


@pytest.fixture(scope="module")
def tables() -> ReferenceTables:
    return ReferenceTables(World(tiny_world.TINY), ExactModel(tiny_world.make_model(), name="reference"))


def hard(tables: ReferenceTables, n: int) -> HardBestOfN:
    return HardBestOfN(tables, partial(gold_table, weights=Weights((0.5, 0.5))), n, f"best of {n}")


def test_best_of_one_is_the_reference(tables: ReferenceTables) -> None:
    prompt = tables.world.test_prompts("none")[4]
    leaf_NV, ref_NV = hard(tables, 1).leaf_logprobs(tables.world, prompt), tables.leaves(prompt)
    assert torch.equal(leaf_NV.isfinite(), ref_NV.isfinite())
    assert float((leaf_NV - ref_NV)[ref_NV.isfinite()].abs().max()) < 1e-12
    assert hard(tables, 16).samples_per_response == 16


def test_the_exact_kl_stays_below_the_bound_and_the_reward_rises(tables: ReferenceTables) -> None:
    """Published tables print the bound as the KL: here many responses tie, and the KL is far below it."""
    world, weights = tables.world, Weights((0.5, 0.5))
    for prompt in tables.world.test_prompts("none")[::5]:
        found = [
            outcome(world, prompt, hard(tables, n).leaf_logprobs(world, prompt), tables.leaves(prompt))
            for n in (1, 2, 8, 64)
        ]
        for n, result in zip((1, 2, 8, 64), found, strict=True):
            assert -1e-9 <= result.kl <= kl_bound(n) + 1e-12
        assert found[2].kl < 0.9 * kl_bound(8)
        values = [sum(w * v for w, v in zip(weights, result.values, strict=True)) for result in found]
        assert values == sorted(values) and values[-1] > values[0] + 0.1


def test_the_bound_by_published_numbers() -> None:
    assert [round(kl_bound(n), 4) for n in (1, 2, 4, 16, 64)] == [0.0, 0.1931, 0.6363, 1.8351, 3.1745]
    with pytest.raises(ValueError, match="n >= 1"):
        kl_bound(0)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 5])
def test_the_policy_draws_from_the_law(n: int, reference: str) -> None:
    """20,000 decoded responses a prompt against the closed form on the nine next tokens; 5 standard errors each."""
    family = fit(best_of_n, best_of_n.Config(n=n), reference=reference, weights=[BOTH], out=Path("unused"))
    for prompt in PROMPTS:
        texts = family.policy(BOTH).generate([prompt] * 20_000, max_new_tokens=1, seed=3, batch_size=4000)
        base, rewards = next_distribution(reference, prompt), scalarised(prompt, BOTH)
        law = dict(zip(WORDS, law_of(base, rewards, n=n), strict=True))
        expected = {"": law.pop("<pad>") + law.pop("<end>"), **law}  # neither special token leaves a text
        counts = Counter(text.strip() for text in texts)
        for word, p in expected.items():
            assert abs(counts[word] / 20_000 - p) <= 5 * math.sqrt(p * (1 - p) / 20_000), word


# ------------------------------------------------------------------------------------------------------- the policy


class Drawer:
    """A reference whose draw i of a prompt is the prompt and i + 1 words."""

    name, samples_per_response = "drawer", 1

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def draw(self, prompts: Sequence[str], *, max_new_tokens: int, seed: int, batch_size: int) -> list[Drawn]:
        self.seeds.append(seed)
        return [Drawn((7,) * (seed % 1000 + 1), False, p + " word" * (seed % 1000 + 1)) for p in prompts]

    def sequence_logprobs(
        self, prompts: Sequence[str], completions: Sequence[str], *, max_new_tokens: int | None = None
    ) -> list[float]:
        return [-1.0 for _ in prompts]


def test_it_takes_the_best_of_distinct_draws_and_is_charged_for_them() -> None:
    """Draws of 1, 2, 3 words; the score prefers 2. KL bound at n = 3: log 3 - 2/3."""
    base = Drawer()
    best = BestOfNPolicy(base, score=lambda p, c, **_: [-abs(t.count("word") - 2) for t in c], n=3, name="best")
    assert best.generate(["a", "b"], max_new_tokens=4, seed=0) == ["a word word", "b word word"]
    assert [response.ids for response in best.draw(["a"], max_new_tokens=4, seed=0)] == [(7, 7)]
    assert len(set(base.seeds)) == 3 and best.samples_per_response == best.scores_per_response == 3
    assert best.sequence_logprobs(["a"], ["b"]) == [pytest.approx(-1 + math.log(3) - 2 / 3)]
    with pytest.raises(UserError, match="whole responses"):
        best.next_token_logprobs(None, None)
    with pytest.raises(UserError, match="at least 1"):
        BestOfNPolicy(base, score=len, n=0, name="none")
    assert isinstance(best, Policy)


def test_each_prompt_is_scored_with_its_own_draws() -> None:
    """The score of a draw depends on its prompt: a mixed-up order of prompts and draws would take the others."""

    def score(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        assert len(columns["completion_ids"]) == len(completions)
        assert all(text.startswith(prompt) for prompt, text in zip(prompts, completions, strict=True))
        return [t.count("word") * (1.0 if p == "up" else -1.0) for p, t in zip(prompts, completions, strict=True)]

    best = BestOfNPolicy(Drawer(), score=score, n=4, name="best")
    assert best.generate(["up", "down", "up"], max_new_tokens=9, seed=0) == ["up" + " word" * 4, "down word"] + [
        "up" + " word" * 4
    ]


def test_no_two_seeds_share_a_draw() -> None:
    base = Drawer()
    policy = BestOfNPolicy(base, score=lambda p, c, **_: [0.0] * len(c), n=1500, name="best")
    for seed in (0, 1, 2):
        policy.generate(["a"], max_new_tokens=1, seed=seed)
    assert len(set(base.seeds)) == 3 * 1500


def test_equals_are_drawn_uniformly_and_by_the_seed() -> None:
    """600 prompts, draws 2 and 4 of 4 tie as best: a first-of-equals rule would take draw 2 always."""
    policy = BestOfNPolicy(Drawer(), score=lambda p, c, **_: [t.count("word") % 2 == 0 for t in c], n=4, name="best")
    texts = policy.generate(["a"] * 600, max_new_tokens=1, seed=5)
    counts = Counter(text.count("word") for text in texts)
    assert set(counts) == {2, 4} and abs(counts[2] - 300) < 5 * math.sqrt(600 / 4)
    assert texts == policy.generate(["a"] * 600, max_new_tokens=1, seed=5)
    assert texts != policy.generate(["a"] * 600, max_new_tokens=1, seed=6)


def test_a_ranking_puts_equals_in_any_order() -> None:
    import random

    orders = Counter(tuple(ranking([1.0, 3.0, 1.0], rng=random.Random(i))) for i in range(400))
    assert set(orders) == {(1, 0, 2), (1, 2, 0)} and min(orders.values()) > 150


# ----------------------------------------------------------------------------------------------------- its objectives


def never(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    raise AssertionError("an objective of weight 0 was asked")


def test_the_weighted_score_is_w_dot_r_of_the_weighted_objectives() -> None:
    score = WeightedScore({**OBJECTIVES, "three": never}, names=["one", "two", "three"], weights=Weights((0.3, 0.7, 0)))
    assert score.asked == 2
    for prompt in PROMPTS:
        expected = [0.3 * reward("one", prompt, word) + 0.7 * reward("two", prompt, word) for word in "ABCD"]
        assert score([prompt] * 4, list("ABCD")) == pytest.approx(expected)
        assert score([prompt], ["A"]) != score([prompt], ["C"])  # the score sees the completion (RLPHF's did not)


def test_an_objective_that_applies_to_a_part_of_a_prompts_responses_cannot_rank_them() -> None:
    weights = {"a": 0.5, "b": 0.5}
    scores = {"a": [1.0, 2.0, 4.0, 6.0], "b": [None, None, 2.0, 4.0]}
    assert weighted_sums(scores, weights=weights, prompts=["p", "p", "q", "q"]) == [0.5, 1.0, 3.0, 5.0]
    with pytest.raises(UserError, match="some responses to 'p' and not others"):
        weighted_sums(scores, weights=weights, prompts=["p", "p", "p", "q"])
    with pytest.raises(ValueError, match="nan"):
        weighted_sums({"a": [math.nan]}, weights={"a": 1.0}, prompts=["p"])


def test_three_objectives_with_one_unused_are_two_and_a_vertex_is_one(reference: str, tmp_path: Path) -> None:
    wide = {**OBJECTIVES, "three": never}
    asked = [*PROMPTS] * 40

    def decoded(objectives: Mapping[str, Any], *weights: float) -> list[str]:
        preference = Weights(weights)
        config = best_of_n.Config(n=4)
        family = fit(best_of_n, config, reference=reference, weights=[preference], out=tmp_path, objectives=objectives)
        return family.policy(preference).generate(asked, max_new_tokens=1, seed=1)

    two = decoded(OBJECTIVES, 0.3, 0.7)
    assert two == decoded(wide, 0.3, 0.7, 0.0) != decoded(OBJECTIVES, 0.7, 0.3)
    assert decoded(OBJECTIVES, 0.0, 1.0) == decoded({"two": OBJECTIVES["two"]}, 1.0)


# -------------------------------------------------------------------------------------------------------- the family


def test_the_family_says_what_it_does_and_costs_nothing_before_decoding(reference: str, tmp_path: Path) -> None:
    ledger = Ledger()
    family = fit(best_of_n, best_of_n.Config(n=4), reference=reference, weights=[BOTH], out=tmp_path, ledger=ledger)
    assert ledger == Ledger() and not list(tmp_path.iterdir())
    assert family.point_cost == "decode" and isinstance(family, PolicyFamily)
    assert "no J" in family.optimises[BOTH.label] and "at most" in family.optimises[BOTH.label]
    assert "bound" in family.domain
    policy = family.policy(Weights((0.9, 0.1)))  # any weights, not only those listed
    assert policy.samples_per_response == 4 and policy.scores_per_response == 8
    assert family.policy(Weights((1.0, 0.0))).scores_per_response == 4
    for wrong in (Weights((1.0,)), Weights((0.5, 0.25, 0.25))):
        with pytest.raises(UserError, match="answers 2 weights"):
            family.policy(wrong)
    with pytest.raises(UserError, match="n must be at least 1"):
        fit(best_of_n, best_of_n.Config(n=0), reference=reference, weights=[BOTH], out=tmp_path)


def save_scorer(language_model: Path, folder: Path, *, seed: int) -> str:
    from align.models import load_scorer, load_tokenizer, save_model

    torch.manual_seed(seed)  # the head is new and random
    tokenizer = load_tokenizer(language_model)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return str(save_model(load_scorer(language_model, **ids), tokenizer, folder))


def test_reward_models_come_back_with_the_family(tiny_model: Path, tmp_path: Path) -> None:
    """One lies outside the run and keeps its place, the other lies in it and moves with it."""
    out = tmp_path / "run"
    scorers = [save_scorer(tiny_model, folder, seed=i) for i, folder in enumerate((tmp_path / "one", out / "two"))]
    objectives = {
        "one": RewardModelObjective(scorers[0], name="one"),
        "two": RewardModelObjective(scorers[1], name="two", scale=-2.0, shift=0.5),
    }
    family = fit(
        best_of_n, best_of_n.Config(n=3), reference=str(tiny_model), weights=[BOTH], out=out, objectives=objectives
    )
    family.save(out)
    out.rename(tmp_path / "moved")
    again = families.load_family(tmp_path / "moved")
    assert (again.n, again.names, again.preferences) == (3, ("one", "two"), (BOTH,))
    assert again.optimises == family.optimises and again.domain == family.domain

    def decoded(family: BestOfNFamily) -> list[str]:
        return family.policy(BOTH).generate(["bread tea"] * 20, max_new_tokens=3, seed=0)

    out.symlink_to(tmp_path / "moved")  # the family in memory knows the old place
    assert decoded(family) == decoded(again)
    swapped = {"one": objectives["two"], "two": objectives["one"]}
    assert decoded(again) != decoded(again.with_objectives(swapped))


def test_other_objectives_must_be_given_back(reference: str, tmp_path: Path) -> None:
    family = fit(best_of_n, best_of_n.Config(n=3), reference=reference, weights=[BOTH], out=tmp_path)
    family.save(tmp_path)
    again = families.load_family(tmp_path)
    policy = again.policy(BOTH)  # an exact evaluation asks for the law only
    assert policy.samples_per_response == 3
    with pytest.raises(UserError, match="one, two cannot be read back"):
        policy.generate([*PROMPTS], max_new_tokens=1, seed=0)
    with pytest.raises(UserError, match="two cannot be read back"):
        again.with_objectives({"one": OBJECTIVES["one"]})
    given = again.with_objectives({**OBJECTIVES, "more": never})
    expected = family.policy(BOTH).generate([*PROMPTS], max_new_tokens=1, seed=0)
    assert given.policy(BOTH).generate([*PROMPTS], max_new_tokens=1, seed=0) == expected


def test_cells_charge_every_sample_and_score_of_a_response(reference: str, tmp_path: Path) -> None:
    """2 prompts x 1 sample: 2 for the reference, and of best of 3 each takes 3 samples and 3 x 2 scores to decode."""
    family = fit(best_of_n, best_of_n.Config(n=3), reference=reference, weights=[BOTH], out=tmp_path)
    base, ledger = ModelPolicy(reference, name="reference"), Ledger()
    cells = sample_answers(
        [Point("reference", BOTH, base), Point("best", BOTH, family.policy(BOTH))],
        reference=base,
        prompts={"none": [{"prompt": p, "item": p} for p in PROMPTS]},
        objectives=OBJECTIVES,
        sampling=Sampling(samples=1, max_new_tokens=1),
        folder=tmp_path / "parts",
        ledger=ledger,
    )
    assert ledger.samples_drawn == 2 + 2 * 3
    assert ledger.scores_read == 2 * 2 + 2 * (2 + 3 * 2)
    assert [cell.kl for cell in cells[2:]] == pytest.approx([kl_bound(3)] * 2, abs=1e-5)


def test_finetune_and_evaluate_from_the_command_line(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    """Rules as objectives: not in family.json, but in the run, where `align evaluate` finds them."""
    file = tmp_path / "objectives.yaml"
    file.write_text(
        "objectives:\n  - {kind: length, per: character, name: long}\n"
        "  - {kind: length, per: character, name: short, longer_is_better: false}\n"
    )
    data = ["--data", str(tiny_rows["prompts"]), "--limit", "6"]
    run, out = tmp_path / "best", tmp_path / "evaluation"
    weights = ["--weights", "1,0", "0,1", "--set", "training.n=4"]
    finetune.main(["best_of_n", "--config", str(file), "--model", str(tiny_model), "--out", str(run), *data, *weights])
    family = evaluate.family_of(str(run))
    assert isinstance(family.objectives["long"], Length)
    arguments = ["--out", str(out), "--text", str(tiny_rows["text"])]
    evaluate.main([str(run), *data, *arguments, "--set", "sampling.max_new_tokens=6", "--set", "sampling.samples=1"])
    summary = json.loads((out / "summary.json").read_text())
    row = summary["methods"]["best"]
    assert row["samples_per_response"] == 4 and row["kl"] == pytest.approx(kl_bound(4), abs=1e-4)
    assert row["bits_per_byte"]["change"] == 0 and "bound" in row["note"]
    values = {tuple(point["preference"]): point["values"] for point in row["front"]}
    assert values[1.0, 0.0][0] > values[0.0, 1.0][0]  # the longest of four is longer than the shortest
    assert summary["ledger"]["evaluate"]["samples_drawn"] == 6 + 2 * 6 * 4
    assert np.isfinite(row["raw_hypervolume"])
