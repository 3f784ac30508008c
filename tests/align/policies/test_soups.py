"""Soups against dense sums: exact for weights and adapters, inexact as published, refused where meaningless."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.errors import UserError
from align.methods import personalised_soups, rewarded_soups
from align.models import load_model
from align.policies.base import ModelPolicy
from align.policies.load import load_family
from align.policies.merging import check_mergeable, merge_states
from align.policies.soups import SoupFamily, merge
from align.preferences import Direction, Weights
from align.runs import Ledger
from factories.made_models import make_adapter
from factories.tiny_bandit import OBJECTIVES, PROMPTS, make_reference, pair_rows, problem_of, workspace
from factories.tiny_bandit import fit as bandit_fit

PROMPT_ROWS = [{"id": str(i), "prompt": prompt} for i, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_reference(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three unrelated models of one shape."""
    folder = tmp_path_factory.mktemp("full")
    return [make_reference(folder / str(seed), seed=seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def adapters(base: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters of different ranks on one base."""
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(base, folder / "0", r=2, seed=1), make_adapter(base, folder / "1", r=3, seed=2)]


def dense_deltas(adapter: str) -> dict[str, torch.Tensor]:
    """`(alpha / r) B A` of every adapted layer, from the files."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    state = load_file(Path(adapter) / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    return {
        name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight"): scale
        * state[name.replace("lora_A", "lora_B")].double()
        @ tensor.double()
        for name, tensor in state.items()
        if "lora_A" in name
    }


# ------------------------------------------------------------------------------------------------------- full weights


@pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (0.5, 0.0, 0.5)])
def test_full_soups_are_the_dense_sum(weights: tuple[float, ...], full: list[str], tmp_path: Path) -> None:
    soup = load_file(Path(merge(full, weights=weights, out=tmp_path / "soup")) / "model.safetensors")
    states = [load_file(Path(path) / "model.safetensors") for path in full]
    assert soup.keys() == states[0].keys()
    for name, tensor in soup.items():
        dense = sum(w * state[name].double() for w, state in zip(weights, states, strict=True))
        assert tensor.dtype == states[0][name].dtype
        assert torch.allclose(tensor.double(), dense, atol=1e-6)


def test_a_bf16_reference_is_averaged_with_what_was_trained_from_it(full: list[str], tmp_path: Path) -> None:
    """Training saves float32 and writes the padding token into the config; neither makes it another model."""
    hub = Path(shutil.copytree(full[0], tmp_path / "hub"))
    state = {name: tensor.bfloat16() for name, tensor in load_file(hub / "model.safetensors").items()}
    save_file(state, hub / "model.safetensors", {"format": "pt"})
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**config, "pad_token_id": None, "dtype": "bfloat16"}))
    soup = load_file(Path(merge([hub, full[1]], weights=(0.5, 0.5), out=tmp_path / "soup")) / "model.safetensors")
    trained = load_file(Path(full[1]) / "model.safetensors")
    for name, tensor in soup.items():
        assert torch.equal(tensor, ((state[name].double() + trained[name]) / 2).float())


@pytest.mark.parametrize("vertex", [0, 1, 2])
def test_at_a_vertex_the_soup_is_the_specialist_bit_for_bit(vertex: int, full: list[str], tmp_path: Path) -> None:
    weights = Weights.vertex(vertex, 3)
    merged = merge(full, weights=weights.values, out=tmp_path / "soup")
    ours, theirs = (load_file(Path(path) / "model.safetensors") for path in (merged, full[vertex]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    policy = SoupFamily(tuple(full), tmp_path).policy(weights)
    assert isinstance(policy, ModelPolicy) and policy.path == full[vertex]  # no merge at all
    ids = torch.tensor([[2, 4]])
    expected = ModelPolicy(full[vertex]).next_token_logprobs(ids, torch.ones_like(ids))
    assert torch.equal(ModelPolicy(merged).next_token_logprobs(ids, torch.ones_like(ids)), expected)


def test_a_soup_model_loads_with_its_tokenizer_and_ending_tokens(full: list[str], tmp_path: Path) -> None:
    family = SoupFamily(tuple(full), tmp_path)
    policy = family.policy(Weights((0.25, 0.25, 0.5)))
    assert policy.name == "rewarded_soups@0.25,0.25,0.5"
    assert len(policy.model.generation_config.eos_token_id) == 9
    (logp,) = policy.sequence_logprobs(["x :"], [" A"])
    assert logp < 0


def test_soups_are_kept_and_made_anew_when_a_specialist_changes(full: list[str], tmp_path: Path) -> None:
    copies = [str(shutil.copytree(path, tmp_path / str(k))) for k, path in enumerate(full[:2])]
    family, weights = SoupFamily(tuple(copies), tmp_path), Weights((0.5, 0.5))
    first = Path(family.policy(weights).path) / "model.safetensors"
    made = first.stat().st_mtime_ns
    assert Path(family.policy(weights).path) / "model.safetensors" == first and first.stat().st_mtime_ns == made
    before = load_file(first)
    shutil.copy(Path(full[2]) / "model.safetensors", Path(copies[1]) / "model.safetensors")
    after = load_file(Path(family.policy(weights).path) / "model.safetensors")
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert not list(tmp_path.rglob("*.partial*"))


# ----------------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8)])
def test_merged_adapters_change_the_weights_by_the_dense_sum(
    weights: tuple[float, float], base: str, adapters: list[str], tmp_path: Path
) -> None:
    soup = merge(adapters, weights=weights, out=tmp_path / "soup")
    assert (Path(soup) / "adapter_config.json").is_file()
    merged, plain = load_model(soup).state_dict(), load_model(base).state_dict()
    deltas = [dense_deltas(path) for path in adapters]
    assert len(deltas[0]) == 7  # every linear layer of the one block
    for name, tensor in plain.items():
        change = sum(w * d[name] for w, d in zip(weights, deltas, strict=True)) if name in deltas[0] else 0.0
        assert torch.allclose(merged[name].double(), tensor.double() + change, atol=1e-5), name


@pytest.fixture(scope="module")
def alike(base: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three adapters of one rank: their factors can be averaged."""
    folder = tmp_path_factory.mktemp("alike")
    return [make_adapter(base, folder / str(seed), r=2, seed=seed) for seed in (3, 4, 5)]


def weight_changes(model: str, base: str) -> dict[str, torch.Tensor]:
    """Full weights of a model or adapter directory minus those of its base, as far as they differ."""
    merged, plain = load_model(model).state_dict(), load_model(base).state_dict()
    return {n: t.double() - plain[n].double() for n, t in merged.items() if not torch.equal(t, plain[n])}


def test_averaged_factors_miss_the_dense_sum_by_the_cross_term(base: str, alike: list[str], tmp_path: Path) -> None:
    """(w B + v B')(w A + v A') - (w B A + v B' A') = -w v (B - B')(A - A') for w + v = 1: as large as the soup itself.

    The official code of RS, MOD's baseline and P-Soups merge so, and PEFT's "linear" does.
    """
    w, v = 0.3, 0.7
    soup = merge(alike[:2], weights=(w, v), out=tmp_path / "soup", adapter_merge="factors")
    found, deltas = weight_changes(soup, base), [dense_deltas(path) for path in alike[:2]]
    one, two = (load_file(Path(path) / "adapter_model.safetensors") for path in alike[:2])
    assert len(found) == 7
    for name, change in found.items():
        a, b = (f"base_model.model.{name.removesuffix('weight')}lora_{x}.weight" for x in "AB")
        cross = -w * v * 3.0 * (one[b] - two[b]).double() @ (one[a] - two[a]).double()  # alpha / r = 3
        dense = w * deltas[0][name] + v * deltas[1][name]
        assert torch.allclose(change, dense + cross, atol=1e-5), name
        assert float(cross.norm() / dense.norm()) > 0.3


@pytest.mark.parametrize("weights", [(0.5, 0.2, 0.3), (0.5, 0.0, 0.5)])
def test_merging_into_the_base_first_is_the_exact_soup(
    weights: tuple[float, ...], base: str, alike: list[str], tmp_path: Path
) -> None:
    exact, full = (merge(alike, weights=weights, out=tmp_path / how, adapter_merge=how) for how in ("exact", "full"))
    assert (Path(exact) / "adapter_config.json").is_file() and not (Path(full) / "adapter_config.json").exists()
    ours, theirs = load_model(full).state_dict(), load_model(exact).state_dict()
    assert all(torch.allclose(tensor, theirs[name], atol=1e-5) for name, tensor in ours.items())
    assert len(weight_changes(full, base)) == 7
    (one,), (two,) = (ModelPolicy(path).sequence_logprobs(["x :"], [" A"]) for path in (exact, full))
    assert one == pytest.approx(two, abs=1e-4)
    assert load_model(full).generation_config.eos_token_id == load_model(base).generation_config.eos_token_id


def test_a_soup_merged_in_another_way_is_another_soup(alike: list[str], tmp_path: Path) -> None:
    found = []
    for how in ("factors", "exact", "full"):
        family = SoupFamily(tuple(alike), tmp_path, adapter_merge=how)
        family.save(tmp_path)
        policy = load_family(tmp_path).policy(Weights((0.2, 0.2, 0.6)))  # of one folder: each time made anew
        found.append(policy.sequence_logprobs(["x :"], [" A"])[0])
    assert found[1] == pytest.approx(found[2], abs=1e-4) and abs(found[0] - found[1]) > 1e-3


def test_factors_of_different_shapes_are_not_averaged(
    base: str, full: list[str], adapters: list[str], alike: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="differs in r "):
        check_mergeable(adapters, adapter_merge="factors")
    scaled = make_adapter(base, tmp_path / "scaled", r=2, seed=6, lora_alpha=2)
    with pytest.raises(UserError, match="differs in lora_alpha"):
        check_mergeable([alike[0], scaled], adapter_merge="factors")
    with pytest.raises(UserError, match="is a full model"):
        check_mergeable(full, adapter_merge="factors")
    with pytest.raises(UserError, match="exact, full, factors, not 'linear'"):
        check_mergeable(alike, adapter_merge="linear")
    assert check_mergeable(adapters) == "adapter" and check_mergeable(full, adapter_merge="full") == "full"


def test_a_full_soup_is_made_anew_when_its_base_changes(alike: list[str], base: str, tmp_path: Path) -> None:
    moved = str(shutil.copytree(base, tmp_path / "base"))
    specialists = []
    for path in alike[:2]:
        folder = Path(shutil.copytree(path, tmp_path / Path(path).name))
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": moved}))
        specialists.append(str(folder))
    settings: dict[str, Any] = {"weights": (0.5, 0.5), "out": tmp_path / "soup", "adapter_merge": "full"}
    before = load_file(Path(merge(specialists, **settings)) / "model.safetensors")
    state = load_file(Path(moved) / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in state.items()}, Path(moved) / "model.safetensors", {"format": "pt"})
    after = load_file(Path(merge(specialists, **settings)) / "model.safetensors")
    assert torch.allclose(after["lm_head.weight"], 2 * before["lm_head.weight"])


def test_adapter_soups_at_a_vertex_are_the_specialist(adapters: list[str], tmp_path: Path) -> None:
    policy = SoupFamily(tuple(adapters), tmp_path).policy(Weights((0.0, 1.0)))
    assert isinstance(policy, ModelPolicy) and policy.path == adapters[1]


# ---------------------------------------------------------------------------------------------------------- refusals


def test_unknown_and_missing_tensors_are_refused(full: list[str], tmp_path: Path) -> None:
    one, two = torch.ones(2), torch.zeros(2)
    for odd in ({"a": one}, {"a": one, "b": one, "c": one}):
        with pytest.raises(UserError, match="share the tensor [bc]"):
            merge_states([{"a": one, "b": two}, odd], weights=(0.5, 0.5))
    with pytest.raises(UserError, match="shape or type"):
        merge_states([{"a": one}, {"a": torch.ones(3)}], weights=(0.5, 0.5))
    with pytest.raises(UserError, match="integer tensor"):
        merge_states([{"a": torch.tensor([1])}, {"a": torch.tensor([2])}], weights=(0.5, 0.5))
    broken = Path(shutil.copytree(full[1], tmp_path / "broken"))
    state = load_file(broken / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="model.norm.weight"):
        merge([full[0], broken], weights=(0.5, 0.5), out=tmp_path / "soup")
    assert not (tmp_path / "soup").exists() and not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize("weights", [(1.3, -0.3), (0.5, 0.4)])
def test_extrapolation_is_never_silent(weights: Sequence[float], full: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not on the simplex"):
        merge(full[:2], weights=weights, out=tmp_path / "soup")
    soup = Path(merge(full[:2], weights=weights, out=tmp_path / "soup", extrapolate=True))
    assert json.loads((soup / "soup.json").read_text())["extrapolated"] is True
    states = [load_file(Path(path) / "model.safetensors")["lm_head.weight"] for path in full[:2]]
    expected = weights[0] * states[0] + weights[1] * states[1]
    assert torch.allclose(load_file(soup / "model.safetensors")["lm_head.weight"], expected, atol=1e-6)


def test_specialists_that_do_not_fit_together_are_refused(
    base: str, full: list[str], adapters: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="train all of them the same way"):
        check_mergeable([full[0], adapters[0]])
    other = make_reference(tmp_path / "gpt2", architecture="gpt2")
    with pytest.raises(UserError, match="config.json; they cannot be averaged"):
        check_mergeable([full[0], other])
    renamed = Path(shutil.copytree(full[1], tmp_path / "renamed"))
    (renamed / "tokenizer.json").write_text((renamed / "tokenizer.json").read_text().replace('"A"', '"Z"'))
    with pytest.raises(UserError, match="different tokenizers"):
        check_mergeable([full[0], renamed])
    stabilised = make_adapter(base, tmp_path / "rslora", r=2, seed=3, use_rslora=True)
    with pytest.raises(UserError, match="use_rslora"):
        check_mergeable([adapters[0], stabilised])
    elsewhere = make_adapter(full[0], tmp_path / "elsewhere", r=2, seed=3)
    with pytest.raises(UserError, match="another base model"):
        check_mergeable([adapters[0], elsewhere])


def fit(config: rewarded_soups.Config, base: str, out: Path, **data: Any) -> SoupFamily:
    points = [Weights((1.0, 0.0)), Weights((0.5, 0.5)), Weights((0.0, 1.0))]
    return bandit_fit(rewarded_soups, config, reference=base, weights=points, out=out, **data)


def test_fit_refuses_unknown_merges_and_bad_settings(base: str, full: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not 'linear'; use exact"):
        fit(rewarded_soups.Config(adapter_merge="linear"), base, tmp_path)
    with pytest.raises(UserError, match="set method_config.lora_r"):  # before anything is trained
        fit(rewarded_soups.Config(adapter_merge="factors"), base, tmp_path)
    with pytest.raises(UserError, match="no method 'rewarded_soups'"):
        fit(rewarded_soups.Config(method="rewarded_soups"), base, tmp_path)
    with pytest.raises(UserError, match="3 specialists for 2 objectives"):
        fit(rewarded_soups.Config(specialists=tuple(full)), base, tmp_path)
    with pytest.raises(UserError, match="no method 'reinforce'"):
        fit(rewarded_soups.Config(method="reinforce"), base, tmp_path)
    with pytest.raises(UserError, match="no key 'learning'"):
        fit(rewarded_soups.Config(method="dpo", method_config={"learning": 1}), base, tmp_path)


# ------------------------------------------------------------------------------------------------------------- family


def test_specialists_are_trained_at_the_vertices_and_the_family_is_found_again(base: str, tmp_path: Path) -> None:
    settings = {"steps": 2, "batch_size": 16, "num_generations": 8, "max_completion_length": 1, "learning_rate": 1e-3}
    ledger = Ledger()
    config = rewarded_soups.Config(method="morlhf", method_config=settings)
    family = fit(config, base, tmp_path / "soups.partial", prompts=PROMPT_ROWS, ledger=ledger)
    assert ledger.samples_drawn == 2 * 2 * 16  # two specialists, whatever the number of preferences
    family.save(tmp_path / "soups.partial")
    (tmp_path / "soups.partial").rename(tmp_path / "soups")  # as a finished stage does
    again = load_family(tmp_path / "soups")
    assert again.point_cost == "merge" and len(again.preferences) == 3
    assert "no J" in again.optimises["0.5,0.5"]
    vertices = [load_file(Path(again.policy(Weights(w)).path) / "model.safetensors") for w in ((1.0, 0.0), (0.0, 1.0))]
    middle = load_file(Path(again.policy(Weights((0.75, 0.25))).path) / "model.safetensors")
    for name, tensor in middle.items():
        assert torch.allclose(tensor, 0.75 * vertices[0][name] + 0.25 * vertices[1][name], atol=1e-7)
    assert not torch.equal(vertices[0]["lm_head.weight"], vertices[1]["lm_head.weight"])
    with pytest.raises(UserError, match="answers 2 weights"):
        again.policy(Weights((0.5, 0.25, 0.25)))
    with pytest.raises(UserError, match="answers 2 weights"):
        again.policy(Direction((0.6, 0.8)))


def test_adapter_specialists_from_dpo_make_a_soup(base: str, tmp_path: Path) -> None:
    settings = {"labels": "scalarised", "batch_size": 32, "learning_rate": 1e-2, "lora_r": 2}
    config = rewarded_soups.Config(method="dpo", method_config=settings)
    family = fit(config, base, tmp_path, comparisons=pair_rows(64))
    (middle,) = family.policy(Weights((0.5, 0.5))).sequence_logprobs(["x :"], [" A"])
    (vertex,) = family.policy(Weights((1.0, 0.0))).sequence_logprobs(["x :"], [" A"])
    (reference,) = ModelPolicy(base).sequence_logprobs(["x :"], [" A"])
    assert len({round(x, 6) for x in (middle, vertex, reference)}) == 3


def test_specialists_may_be_averaged_by_their_factors(base: str, alike: list[str], tmp_path: Path) -> None:
    config = rewarded_soups.Config(specialists=tuple(alike[:2]), adapter_merge="factors")
    family = fit(config, base, tmp_path)
    assert family.adapter_merge == "factors" and "LoRA factors averaged" in family.optimises["0.5,0.5"]
    direct = merge(alike[:2], weights=(0.5, 0.5), out=tmp_path / "direct", adapter_merge="factors")
    path = Path(family.policy(Weights((0.5, 0.5))).path)
    ours, theirs = (load_file(Path(p) / "adapter_model.safetensors") for p in (path, direct))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# -------------------------------------------------------------------------------------------------- personalised soups


def test_personalised_soups_use_the_set_of_objectives_not_the_weights(full: list[str], tmp_path: Path) -> None:
    objectives = {**OBJECTIVES, "three": OBJECTIVES["one"]}
    points = [Weights((0.9, 0.1, 0.0)), Weights((0.2, 0.3, 0.5)), Weights((0.0, 1.0, 0.0))]
    config = personalised_soups.Config(specialists=tuple(full))
    problem = problem_of(full[0], objectives=objectives, preferences=points)
    family = personalised_soups.fit(config, problem, workspace(tmp_path))
    assert "evenly over one, two;" in family.optimises["0.9,0.1,0"]
    assert "evenly over one, two, three;" in family.optimises["0.2,0.3,0.5"]
    family.save(tmp_path)
    again = load_family(tmp_path)
    assert again.method == "personalised_soups" and again.domain == (
        "every set of objectives, as the weights above 0, of 3 objectives"
    )
    states = [load_file(Path(path) / "model.safetensors")["lm_head.weight"] for path in full]
    for weights, chosen in zip(points[:2], (states[:2], states), strict=True):
        policy = again.policy(weights)
        assert policy.name == f"personalised_soups@{weights.label}"
        found = load_file(Path(policy.path) / "model.safetensors")["lm_head.weight"]
        assert torch.allclose(found, torch.stack(chosen).mean(0), atol=1e-6)
    assert again.policy(Weights((0.4, 0.6, 0.0))).path == again.policy(points[0]).path  # the same set, the same soup
    assert again.policy(points[2]).path == full[1]
    with pytest.raises(UserError, match="answers 3 weights"):
        again.policy(Weights((0.5, 0.5)))
