"""Soups against dense sums: exact for weights and adapters, the specialist at a vertex, refused where meaningless."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bandit import OBJECTIVES, PROMPTS, make_reference, make_tokenizer, pair_rows

from align.errors import UserError
from align.families import load_family
from align.methods import rewarded_soups
from align.models import load_model
from align.policies import ModelPolicy
from align.preferences import Direction, Weights
from align.runs import Ledger
from align.soups import SoupFamily, check_mergeable, merge, merge_states

PROMPT_ROWS = [{"id": str(i), "prompt": prompt} for i, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_reference(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three unrelated models of one shape."""
    folder = tmp_path_factory.mktemp("full")
    return [make_reference(folder / str(seed), seed=seed) for seed in (1, 2, 3)]


def make_adapter(base: str, folder: Path, *, r: int, seed: int, **settings: Any) -> str:
    """A LoRA adapter with random factors (PEFT starts B at 0, which would hide every error)."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=3 * r, target_modules="all-linear", **settings)
    model = get_peft_model(load_model(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


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


def test_factor_averaging_would_fail_that_test(adapters: list[str]) -> None:
    """The error of averaging A and B, which published soups do: cross terms as large as the soup itself."""
    first, second = (load_file(Path(path) / "adapter_model.safetensors") for path in (adapters[0], adapters[0]))
    a, b = (name for name in sorted(first) if "q_proj" in name)
    torch.manual_seed(0)
    second = {name: torch.randn_like(tensor) for name, tensor in second.items()}
    factors = (first[b] + second[b]) @ (first[a] + second[a]) / 4
    exact = (first[b] @ first[a] + second[b] @ second[a]) / 2
    assert ((factors - exact).norm() / exact.norm()).item() > 0.3


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
    ledger = data.pop("ledger", None) or Ledger()
    return rewarded_soups.fit(
        config, reference=base, objectives=OBJECTIVES, preferences=points, out=out, ledger=ledger, **data
    )


def test_fit_refuses_inexact_merges_and_bad_settings(base: str, full: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="linear is not a soup"):
        fit(rewarded_soups.Config(adapter_merge="linear"), base, tmp_path)
    with pytest.raises(UserError, match="3 specialists for 2 objectives"):
        fit(rewarded_soups.Config(specialists=tuple(full)), base, tmp_path)
    with pytest.raises(UserError, match="no method 'ppo'"):
        fit(rewarded_soups.Config(method="ppo"), base, tmp_path)
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
