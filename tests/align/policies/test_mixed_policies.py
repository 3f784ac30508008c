"""Mixed policies on one backbone: adapters, exact values, families and their files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import backbones, load_model
from align.models.backbones import ModelPool
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.policies.mixed import MixedFamily, MixedModel, MixedPolicy, Mixture
from align.preferences import Direction, Weights
from align.testbed.answers import ReferenceTables, outcomes
from align.testbed.exact import ExactModel, ExactPolicy
from align.testbed.vocabulary import build_tokenizer
from align.testbed.world import World
from factories.made_mixing import ids_of, mixed, plain_logprobs
from factories.made_models import make_adapter
from factories.tiny_bandit import make_reference, make_tokenizer
from factories.tiny_world import TINY, all_leaves, brute_force, make_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three unrelated models of one vocabulary whose responses go on until `<end>`."""
    folder = tmp_path_factory.mktemp("models")
    return [make_reference(folder / str(seed), one_token=False, seed=seed) for seed in (1, 2, 3)]


# ------------------------------------------------------------------------------------------- adapters on one backbone


def test_adapters_of_one_base_share_its_backbone(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three adapters and their base, read in turn: each as if merged alone, and the base as if it had none."""

    adapters = [make_adapter(models[0], tmp_path / str(r), r=r, seed=r) for r in (1, 2, 3)]
    alone = [plain_logprobs(path, "x :") for path in (models[0], *adapters)]
    assert min(float((a - b).abs().max()) for i, a in enumerate(alone) for b in alone[:i]) > 0.05
    loaded: list[str] = []

    def counted(path: Any, **options: Any) -> Any:
        loaded.append(str(path))
        return load_model(path, **options)

    monkeypatch.setattr("align.models.load.load_model", counted)
    coefficients = (-0.5, 0.6, 0.4, 0.5)
    policy = mixed([models[0], *adapters], *coefficients)
    views = [component.model for component in policy.components()]
    assert loaded == [models[0]]
    assert len({id(view.backbone.model) for view in views}) == 1
    for index in (3, 0, 1, 1, 0, 2, 3, 0):
        found = views[index].eval()(input_ids=ids_of("x :")).logits[0, -1].double().log_softmax(-1)
        assert torch.allclose(found, alone[index], atol=1e-5), index
    expected = sum(a * lp for a, lp in zip(coefficients, alone, strict=True)).log_softmax(-1)
    ids = ids_of("x :")
    assert torch.allclose(policy.next_token_logprobs(ids, torch.ones_like(ids))[0].double(), expected, atol=1e-5)
    texts = policy.generate(["x :", "y y :"] * 5, max_new_tokens=6, seed=0)
    full = [str(load_and_save(path, tmp_path / f"full{i}")) for i, path in enumerate(adapters)]
    assert mixed([models[0], *full], *coefficients).generate(["x :", "y y :"] * 5, max_new_tokens=6, seed=0) == texts
    policy.release()
    assert policy.pool._backbones == {}  # nothing keeps the model in memory
    assert policy.generate(["x :", "y y :"] * 5, max_new_tokens=6, seed=0) == texts


def load_and_save(adapter: str, folder: Path) -> Path:
    """The adapter merged into its base, as a full checkpoint."""
    from align.models import save_model

    return save_model(load_model(adapter), make_tokenizer(), folder)


def test_adapters_that_cannot_be_switched_are_refused(models: list[str], tmp_path: Path) -> None:
    biased = make_adapter(models[0], tmp_path / "biased", r=1, seed=0, bias="lora_only")
    with pytest.raises(UserError, match="trained biases"):
        mixed([models[0], biased], 0.5, 0.5).components()
    broken = make_adapter(models[0], tmp_path / "broken", r=1, seed=0)
    (Path(broken) / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="no model could be read"):
        mixed([models[0], broken], 0.5, 0.5).components()
    (Path(broken) / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="names no base model"):
        mixed([models[0], broken], 0.5, 0.5).components()


def test_models_are_loaded_once_for_all_preferences(models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:

    loaded: list[str] = []

    def counted(path: Any, **options: Any) -> Any:
        loaded.append(str(path))
        return load_model(path, **options)

    monkeypatch.setattr("align.models.load.load_model", counted)
    assert "load_model" not in vars(backbones)  # it is looked up when it is called, so the count above sees it
    family = MixedFamily(method="m", base=models[2], parts=tuple(models[:2]), gains=(1.0, 1.0))
    for w in (0.0, 0.3, 0.7, 1.0):
        family.policy(Weights((w, 1 - w))).components()
    assert sorted(loaded) == sorted(models[:2])  # the reference has coefficient 0 and is never read


# ------------------------------------------------------------------------------------------------------- exact values


class HandMixed:
    """The mixture as a model of `tiny_world`: plain forward passes and a loop over tokens, none of mixed.py."""

    def __init__(self, models: Sequence[Any], coefficients: Sequence[float]) -> None:
        self.models, self.coefficients = models, coefficients

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        tables = [model(input_ids=input_ids, use_cache=False).logits[0, -1].tolist() for model in self.models]
        totals = [math.log(sum(math.exp(x) for x in table)) for table in tables]
        scores = [
            sum(a * (table[v] - t) for a, table, t in zip(self.coefficients, tables, totals, strict=True))
            for v in range(len(tables[0]))
        ]
        return SimpleNamespace(logits=torch.tensor([[scores]], dtype=torch.float64))


@pytest.mark.parametrize("coefficients", [(0.0, 0.4, 0.6), (-0.2, 0.4, 0.8)])
def test_exact_evaluation_is_the_sum_over_all_responses(coefficients: tuple[float, ...]) -> None:
    world = World(TINY)
    three = [make_model(seed=seed) for seed in (0, 1, 2)]
    pool = ModelPool.of(dict(zip("abc", three, strict=True)), build_tokenizer())
    policy = MixedPolicy("abc", mixture=Mixture(coefficients), name="mixed", pool=pool)
    prompt = world.test_prompts("none")[0]
    law = dict(all_leaves(HandMixed(three, coefficients), prompt.text, max_tokens=2))
    base = dict(all_leaves(three[0], prompt.text, max_tokens=2))
    assert sum(math.exp(v) for v in law.values()) == pytest.approx(1, abs=1e-9)
    expected = brute_force(world, prompt.topic, law, base)
    tables = ReferenceTables(world, ExactModel(three[0], name="reference"))
    (found,) = outcomes(ExactPolicy(policy), prompts=[prompt], tables=tables)
    assert found.values == pytest.approx(expected["values"], abs=1e-5)
    assert found.kl == pytest.approx(expected["kl"], abs=1e-5) and found.kl > 0.1
    assert found.malformed == pytest.approx(expected["malformed"], abs=1e-5)


def test_token_by_token_is_not_the_sequence_optimum() -> None:
    """The published proof is for whole responses: two steps by hand, next-token mixing against mixed responses."""
    one = {"A": 0.5, "B": 0.5, "AA": 0.9, "AB": 0.1, "BA": 0.5, "BB": 0.5}
    two = {"A": 0.5, "B": 0.5, "AA": 0.1, "AB": 0.9, "BA": 0.5, "BB": 0.5}
    sequence = {s: math.sqrt(one[s[0]] * one[s] * two[s[0]] * two[s]) for s in ("AA", "AB", "BA", "BB")}
    total = sum(sequence.values())
    after = [torch.tensor([[p["A"], p["B"]], [p["AA"], p["AB"]], [p["BA"], p["BB"]]]).log() for p in (one, two)]
    tokens = Mixture((0.5, 0.5))(after).exp()
    # Both models are torn after A (.9/.1 against .1/.9): whole responses avoid A, next tokens cannot see that coming.
    assert float(tokens[0, 0]) == pytest.approx(0.5)
    assert (sequence["AA"] + sequence["AB"]) / total == pytest.approx(0.3 / 0.8)


# ------------------------------------------------------------------------------------------------------------ families


def test_families_are_saved_and_found_again_after_a_move(models: list[str], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run.partial"
    own = str(shutil.copytree(models[1], folder / "specialists" / "two"))
    family = MixedFamily(
        method="mod",
        base=models[2],
        parts=(models[0], own),
        gains=(0.5, 2.0),
        alpha=1.0,
        normaliser="rescale",
        preferences=(Weights((0.5, 0.5)),),
        optimises={"0.5,0.5": "no J"},
    )
    family.save(folder)
    folder.rename(tmp_path / "run")
    again = load_family(tmp_path / "run")
    assert again.parts == (models[0], str(tmp_path / "run" / "specialists" / "two")) and again.base == models[2]
    assert (again.gains, again.alpha, again.normaliser, again.base_share) == ((0.5, 2.0), 1.0, "rescale", "rest")
    assert again.preferences == family.preferences and again.optimises == family.optimises
    assert again.point_cost == "decode" and again.domain == "all weights of 2 objectives"
    assert again.policy(Weights((0.9, 0.1))).mixture.coefficients == pytest.approx((0.35, 0.45, 0.2))
    hub = MixedFamily(method="mod", base="org/base", parts=("org/one", "org/two"), gains=(1.0, 1.0))
    hub.save(tmp_path / "run")
    assert load_family(tmp_path / "run").parts == ("org/one", "org/two")


def test_coefficients_of_a_family(models: list[str]) -> None:
    mod = MixedFamily(method="mod", base="base", parts=("a", "b", "c"), gains=(0.5, 1.0, 2.0))
    parts, mixture = mod.mixture((0.2, 0.5, 0.3))
    assert parts == ("base", "a", "b", "c") and mixture.coefficients == pytest.approx((-0.2, 0.1, 0.5, 0.6))
    assert mod.mixture((0.0, 1.0, 0.0)) == (("b",), Mixture((1.0,)))
    equal = MixedFamily(method="mod", base="base", parts=("a", "b"), gains=(1.0, 1.0))
    assert equal.mixture((0.25, 0.75)) == (("a", "b"), Mixture((0.25, 0.75)))  # the reference cancels and is not read
    solved = MixedFamily(method="mod", base="base", parts=("a", "b"), gains=(1.0, 1.0), alpha=1.0)
    assert solved.mixture((0.25, 0.75))[0] == ("base", "a", "b")
    guided = MixedFamily(method="genarm", base="base", parts=("a", "b"), gains=(1.0, 4.0), base_share="whole")
    assert guided.mixture((0.5, 0.5)) == (("base", "a", "b"), Mixture((1.0, 0.5, 2.0)))
    assert guided.mixture((0.0, 1.0)) == (("base", "b"), Mixture((1.0, 4.0)))


def test_weights_outside_the_simplex_are_flagged(models: list[str]) -> None:
    family = MixedFamily(method="mod", base=models[2], parts=tuple(models[:2]), gains=(1.0, 1.0))
    for values in ((1.5, -0.5), (0.7, 0.7)):
        with pytest.raises(UserError, match="not on the simplex"):
            family.policy_at(values)
        assert family.policy_at(values, extrapolate=True).name.endswith("(extrapolated)")
    ids = ids_of("x :")
    found = family.policy_at((1.5, -0.5), extrapolate=True).next_token_logprobs(ids, torch.ones_like(ids))[0]
    parts = [plain_logprobs(model, "x :") for model in models[:2]]
    assert torch.allclose(found.double(), (1.5 * parts[0] - 0.5 * parts[1]).log_softmax(-1), atol=1e-5)
    assert "extrapolated" not in family.policy(Weights((0.5, 0.5))).name
    with pytest.raises(UserError, match="answers 2 weights"):
        family.policy(Weights((0.5, 0.25, 0.25)))
    with pytest.raises(UserError, match="answers 2 weights"):
        family.policy(Direction((0.6, 0.8)))
    with pytest.raises(UserError, match="no negative coefficient"):
        MixedFamily(method="mod", base=models[2], parts=tuple(models[:2]), gains=(1.0, 1.0), alpha=1.0).policy_at(
            (1.5, -0.5), extrapolate=True
        )


def test_bits_per_byte_read_a_mixture_like_a_model(models: list[str]) -> None:
    """What the alignment tax asks of a policy's `model`."""
    from align.training.bits import text_bits

    texts = ["x : A B", "y y : C"]
    policy, alone = mixed(models, 0.5, 0.25, 0.25), ModelPolicy(models[0])
    assert text_bits(policy.model, policy.tokenizer, texts).per_byte > 0
    same = mixed([models[0]] * 2, 0.5, 0.5)
    expected = text_bits(alone.model, alone.tokenizer, texts).per_byte
    assert text_bits(same.model, same.tokenizer, texts).per_byte == pytest.approx(expected, abs=1e-5)


def test_the_shortest_context_counts(models: list[str]) -> None:
    long, short = (SimpleNamespace(config=SimpleNamespace(max_position_embeddings=n, eos_token_id=1)) for n in (64, 8))
    for model in (long, short):
        model.generation_config = SimpleNamespace(eos_token_id=[1, 0])
    assert MixedModel([long, short], Mixture((0.5, 0.5)), name="m").config.max_position_embeddings == 8
