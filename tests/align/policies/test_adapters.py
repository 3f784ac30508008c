"""Conditioned adapters: their algebra against dense matrices, and their files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import count_parameters, load_model
from align.policies import conditioned as adapters
from align.policies.conditioned import (
    AdapterConfig,
    ConditionedFamily,
    adapted_layers,
    attach,
    load_adapter,
    merge,
    save_adapter,
)
from align.policies.load import load_family
from align.preferences import Direction, Weights
from factories.conditioned_models import disturb
from factories.tiny_bandit import WORDS, make_reference

KINDS = ("svd", "pblora", "dense")
LINEAR = [AdapterConfig("svd"), AdapterConfig("pblora"), AdapterConfig("dense", products=False)]
ALL = [*LINEAR, AdapterConfig("dense"), AdapterConfig("dense", train_all=True), AdapterConfig("svd", train_all=True)]
IDS = torch.tensor([[2, 4, 5], [3, 4, 6], [2, 4, 7], [3, 4, 8]])
ROWS = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.2, 0.8], [0.5, 0.5]])


def name_of(config: AdapterConfig) -> str:
    return f"{config.kind}{'' if config.products else '-straight'}{'-all' if config.train_all else ''}"


def layer_of(config: AdapterConfig, *, i: int = 6, o: int = 5, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    preferences = adapters.Preferences(config.objectives)
    layer = adapters.LAYERS[config.kind](torch.nn.Linear(i, o), preferences, config).double()
    disturb(layer, size=1.0)
    return layer


def w64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- the algebra


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_the_start_is_the_backbone(config: AdapterConfig, reference: str) -> None:
    plain, model = load_model(reference), load_model(reference)
    attach(model, config).set(ROWS)
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, plain(IDS).logits, atol=1e-5)
    assert not any(layer.delta(torch.tensor([0.3, 0.7])).any() for layer in adapted_layers(model).values())


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_every_kind_of_parameter_learns_from_the_start(config: AdapterConfig, reference: str) -> None:
    """dW = 0 must come from one factor alone: from two the gradient would be 0 for ever."""
    model = load_model(reference)
    attach(model, config).set(ROWS)
    rows = torch.arange(4)
    optimizer = torch.optim.SGD(adapters.trained(model).values(), lr=0.1)
    for _ in range(2):  # the second step reaches the factors beside the one that was 0
        optimizer.zero_grad()
        model(IDS).logits.log_softmax(-1)[rows, -1, rows].sum().backward()
        optimizer.step()
    still = [name for name, p in adapters.trained(model).items() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("config", LINEAR, ids=name_of)
def test_the_change_is_affine_in_the_preference(config: AdapterConfig) -> None:
    layer, a, b = layer_of(config), w64(0.9, 0.1), w64(0.2, 0.8)
    for t in (0.3, 1.7):
        mixed = t * layer.delta(a) + (1 - t) * layer.delta(b)
        assert torch.allclose(layer.delta(t * a + (1 - t) * b), mixed, atol=1e-10)
    assert not torch.allclose(layer.delta(a), layer.delta(b), atol=1e-2)


def test_svd_is_its_formula() -> None:
    """Zhong et al. 2024: U diag(sigma_1..R, s w_1..K) V^T, scaled by alpha / R."""
    layer = layer_of(AdapterConfig("svd", objectives=3, rank=2, alpha=6.0))
    w = w64(0.2, 0.3, 0.5)
    expected = layer.U @ torch.diag(torch.cat([layer.sigma, layer.s * w])) @ layer.V * (6.0 / 2)
    assert layer.U.shape == (5, 5) and layer.V.shape == (5, 6)
    assert torch.allclose(layer.delta(w), expected, atol=1e-10)


def test_pblora_is_its_formula() -> None:
    """Lin et al. 2025 and their code: the scale is alpha / r2, not alpha / (r1 + r2), and W2 is mixed, not B or A."""
    layer = layer_of(AdapterConfig("pblora", objectives=3, rank=2, preference_rank=3, alpha=6.0))
    w = w64(0.2, 0.3, 0.5)
    tables = layer.W2.view(3, 3, 3)
    middle = 0.2 * tables[0] + 0.3 * tables[1] + 0.5 * tables[2]
    shared, conditioned_part = layer.B[:, :2] @ layer.W1 @ layer.A[:2], layer.B[:, 2:] @ middle @ layer.A[2:]
    assert torch.allclose(layer.delta(w), (6.0 / 3) * (shared + conditioned_part), atol=1e-10)


def test_dense_is_its_formula() -> None:
    layer = layer_of(AdapterConfig("dense", objectives=3))
    d = layer.D
    assert len(d) == 6
    expected = 0.2 * d[0] + 0.3 * d[1] + 0.5 * d[2] + 4 * (0.06 * d[3] + 0.1 * d[4] + 0.15 * d[5])
    assert torch.allclose(layer.delta(w64(0.2, 0.3, 0.5)), expected, atol=1e-10)
    straight = layer_of(AdapterConfig("dense", objectives=3, products=False))
    assert len(straight.D) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_vertex_reads_its_own_objective_only(kind: str) -> None:
    layer, vertex = layer_of(AdapterConfig(kind, objectives=3)), w64(0.0, 1.0, 0.0)
    before = layer.delta(vertex)
    table = {"svd": "U", "pblora": "W2", "dense": "D"}[kind]
    parameter = getattr(layer, table)
    own = {"svd": (slice(None), 9), "pblora": 1, "dense": 1}[kind]
    others = {"svd": (slice(None), slice(10, 11)), "pblora": [0, 2], "dense": [0, 2, 3, 4, 5]}[kind]
    with torch.no_grad():
        parameter[others] += 10.0
        assert torch.equal(layer.delta(vertex), before)
        parameter[own] += 1.0
    assert not torch.allclose(layer.delta(vertex), before, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_three_objectives_with_one_unused_are_two(kind: str) -> None:
    """Outputs and gradients; the unused objective's parameters get none."""
    two, three = (layer_of(AdapterConfig(kind, objectives=k)) for k in (2, 3))
    third = {"svd": ("U", "V"), "pblora": ("W2",), "dense": ("D",)}[kind]
    with torch.no_grad():
        three.base.load_state_dict(two.base.state_dict())
        for name, parameter in adapters.trained(two).items():
            target = three.get_parameter(name)
            if name in third and kind == "svd":
                (target[:, : parameter.shape[1]] if name == "U" else target[: len(parameter)]).copy_(parameter)
            elif name == "D":  # D_1, D_2, D_3, D_12, D_13, D_23
                target[[0, 1, 3]] = parameter
            elif name in third:
                target[: len(parameter)] = parameter
            else:
                target.copy_(parameter)
    x = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(0)).double()
    two.preferences.set(ROWS)
    three.preferences.set(torch.cat([ROWS, torch.zeros(4, 1)], 1))
    outputs = [layer(x) for layer in (two, three)]
    assert torch.allclose(*outputs, atol=1e-7)
    for output in outputs:
        output.square().sum().backward()
    if kind == "svd":
        assert not three.U.grad[:, -1].any() and not three.V.grad[-1].any()
        assert torch.allclose(three.s.grad, two.s.grad, rtol=1e-6)
    elif kind == "pblora":
        assert not three.W2.grad[2].any() and torch.allclose(three.W2.grad[:2], two.W2.grad, rtol=1e-6)
    else:
        assert not three.D.grad[[2, 4, 5]].any() and torch.allclose(three.D.grad[[0, 1, 3]], two.D.grad, rtol=1e-6)


# --------------------------------------------------------------------------------------------------- rows of a batch


@pytest.mark.parametrize("config", ALL, ids=name_of)
@pytest.mark.parametrize("rows", [ROWS, ROWS[[0, 3, 3, 0]], ROWS[[1, 2, 3, 0]], ROWS[:1]], ids=["3", "2", "4", "one"])
def test_rows_of_one_batch_are_rows_of_their_own(config: AdapterConfig, rows: torch.Tensor, reference: str) -> None:
    """Equal and unequal numbers of rows a preference, in any order; and their gradients."""
    model = load_model(reference)
    preferences = attach(model, config)
    disturb(model)
    weights = torch.randn(4, 3, len(WORDS), generator=torch.Generator().manual_seed(0))
    preferences.set(rows)
    together = model(IDS).logits
    (together * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in adapters.trained(model).items()}
    model.zero_grad()
    apart = []
    for i in range(4):
        preferences.set(rows[i % len(rows)][None])
        apart.append(model(IDS[i : i + 1]).logits)
        (apart[-1] * weights[i : i + 1]).sum().backward()
    assert torch.allclose(together, torch.cat(apart), atol=1e-4)
    for name, p in adapters.trained(model).items():
        assert torch.allclose(found[name], p.grad, rtol=1e-3, atol=1e-3), name


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_a_merged_checkpoint_is_the_conditioned_model(config: AdapterConfig, reference: str, tmp_path: Path) -> None:
    model = load_model(reference)
    preferences = attach(model, config)
    disturb(model)
    save_adapter(model, config, tmp_path / "a", base=reference)
    preferences.set(ROWS)
    with torch.no_grad():
        together = model.eval()(IDS).logits
        assert not torch.allclose(together, load_model(reference)(IDS).logits, atol=0.1)
        for i, w in enumerate(ROWS.tolist()):
            place = tmp_path / f"{i}"
            plain = load_model(merge(tmp_path / "a", base=reference, weights=w, out=place))
            assert not adapted_layers(plain)
            assert torch.allclose(plain(IDS[i : i + 1]).logits, together[i : i + 1], atol=1e-4)


def test_a_layer_with_a_bias_keeps_it_once() -> None:
    for kind in KINDS:
        layer = layer_of(AdapterConfig(kind))
        x = torch.randn(2, 3, 6).double()
        layer.preferences.set(ROWS[:2])
        expected = [x[i] @ (layer.base.weight + layer.delta(ROWS[i].double())).T + layer.base.bias for i in (0, 1)]
        assert torch.allclose(layer(x), torch.stack(expected), atol=1e-6)


def test_generation_reads_the_rows_preferences_and_fresh_weights(many_tokens: str) -> None:
    """What dense layers keep between the passes of one generation must not outlive a step or a new preference."""
    model = load_model(many_tokens).eval()
    preferences = attach(model, AdapterConfig("dense"))
    disturb(model, size=0.5)
    prompt = torch.tensor([[2, 4]] * 4)

    def sampled() -> list[list[int]]:
        return model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False
        ).tolist()

    def recomputed(rows: torch.Tensor) -> list[list[int]]:
        ids = prompt.clone()
        for _ in range(4):
            preferences.set(rows)
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
        return ids.tolist()

    seen = []
    for rows in (ROWS, ROWS[[1, 0, 3, 2]]):
        for seed in (1, 2):
            preferences.set(rows)
            first = sampled()
            disturb(model, size=0.5, seed=seed)  # as an optimiser's step, without a new call of `set`
            second = sampled()
            with torch.no_grad():
                ends = [row.index(1, 2) if 1 in row[2:] else 6 for row in second]
                expected = recomputed(rows)
            assert [row[:e] for row, e in zip(second, ends, strict=True)] == [
                row[:e] for row, e in zip(expected, ends, strict=True)
            ]
            seen += [first, second]
    assert any(a != b for a, b in zip(seen, seen[1:], strict=False))


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_passes_without_gradients_follow_new_preferences(config: AdapterConfig, reference: str) -> None:
    model = load_model(reference)
    preferences = attach(model, config)
    disturb(model)
    for rows in (ROWS, ROWS.flip(1)):
        preferences.set(rows)
        with torch.no_grad():
            quick = model(IDS).logits
        assert torch.allclose(quick, model(IDS).logits, atol=1e-5)


def test_preferences_must_be_set_and_fit(reference: str) -> None:
    model = load_model(reference)
    preferences = attach(model, AdapterConfig("svd"))
    with pytest.raises(RuntimeError, match="no preference was set"):
        model(IDS)
    with pytest.raises(RuntimeError, match="no preference was set"):
        preferences.only(model, slice(0, 2))
    preferences.set(ROWS[:3])
    with pytest.raises(RuntimeError, match="3 preferences for a batch of 4 rows"):
        model(IDS)
    for wrong in ([[1.0]], [[0.2, 0.3, 0.5]], [0.5, 0.5], torch.zeros(0, 2)):
        with pytest.raises(ValueError, match="for 2 objectives"):
            preferences.set(wrong)
    preferences.set(ROWS)
    preferences.only(model, slice(1, 3))
    assert preferences.of(IDS[:2].float()).tolist() == ROWS[1:3].tolist()
    preferences.only(model, slice(2, 4))  # of the rows that were set, not of the last slice
    assert preferences.of(IDS[:2].float()).tolist() == ROWS[2:4].tolist()


def test_a_batch_may_bring_its_preferences(reference: str) -> None:
    model = load_model(reference)
    preferences = attach(model, AdapterConfig("dense"))
    disturb(model)
    preferences.set(ROWS)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        preferences.set([[0.0, 1.0]])
        assert torch.equal(model(input_ids=IDS, preferences=ROWS).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_turned_off_is_the_backbone(kind: str, reference: str) -> None:
    plain, model = load_model(reference), load_model(reference)
    preferences = attach(model, AdapterConfig(kind))
    disturb(model)
    preferences.set(ROWS)
    with torch.no_grad():
        with model.disable_adapter():
            assert torch.equal(model(IDS).logits, plain(IDS).logits)
        assert not torch.allclose(model(IDS).logits, plain(IDS).logits, atol=1e-2)
    rest = load_model(reference)
    attach(rest, AdapterConfig(kind, train_all=True))
    assert not hasattr(rest, "disable_adapter")  # what remains would not be the reference


def test_tokens_are_charged_for_what_they_are_multiplied_by(reference: str) -> None:
    plain, model = load_model(reference), load_model(reference)
    attach(model, AdapterConfig("dense"))
    n = count_parameters(plain, embeddings=False)
    linear = sum(layer.base.weight.numel() for layer in adapted_layers(model).values())
    assert count_parameters(model, embeddings=False) == n + 3 * linear
    assert adapters.multiplied_parameters(model, tokens_per_preference=12) == pytest.approx(n + 3 * linear / 12)
    low = load_model(reference)
    attach(low, AdapterConfig("svd"))
    assert adapters.multiplied_parameters(low, tokens_per_preference=12) == count_parameters(low, embeddings=False)


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_an_adapter_is_saved_and_loaded(config: AdapterConfig, reference: str, tmp_path: Path) -> None:
    model = load_model(reference)
    preferences = attach(model, config, seed=3)
    disturb(model)
    save_adapter(model, config, tmp_path, base=reference)
    again, found = load_adapter(tmp_path, base=reference)
    for holder in (preferences, found):
        holder.set(ROWS)
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, again(IDS).logits)


def test_an_adapter_file_of_the_former_name_is_read(reference: str, tmp_path: Path) -> None:
    """`train_all` was called `rest`; without it the state would hold parameters that the adapter does not have."""
    model = load_model(reference)
    preferences = attach(model, AdapterConfig("dense", train_all=True), seed=3)
    disturb(model)
    save_adapter(model, AdapterConfig("dense", train_all=True), tmp_path, base=reference)
    content = json.loads((tmp_path / adapters.ADAPTER_FILE).read_text())
    content["rest"] = content.pop("train_all")
    (tmp_path / adapters.ADAPTER_FILE).write_text(json.dumps(content))
    again, found = load_adapter(tmp_path, base=reference)
    for holder in (preferences, found):
        holder.set(ROWS)
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, again(IDS).logits)


def test_wrong_files_are_refused(reference: str, tmp_path: Path) -> None:
    model, config = load_model(reference), AdapterConfig("pblora")
    attach(model, config)
    save_adapter(model, config, tmp_path / "a", base=reference)
    with pytest.raises(UserError, match="holds no conditioned adapter"):
        load_adapter(tmp_path / "none", base=reference)
    content = json.loads((tmp_path / "a" / adapters.ADAPTER_FILE).read_text())
    for change, words in (
        ({"kind": "svd"}, "does not fit"),
        ({"objectives": 3}, "does not fit"),
        ({"rank": 5}, "does not fit"),
        ({"train_all": True}, "does not fit"),
        ({"kind": "lora"}, "not one of"),
        ({"colour": "red"}, "damaged"),
    ):
        (tmp_path / "a" / adapters.ADAPTER_FILE).write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=words):
            load_adapter(tmp_path / "a", base=reference)
    (tmp_path / "a" / adapters.ADAPTER_FILE).write_text(json.dumps(content))
    load_adapter(tmp_path / "a", base=reference)
    (tmp_path / "a" / adapters.STATE_FILE).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged"):
        load_adapter(tmp_path / "a", base=reference)


def test_a_model_that_cannot_be_adapted_and_one_that_diverged_are_refused(tmp_path: Path, reference: str) -> None:
    gpt2 = load_model(make_reference(tmp_path / "gpt2", architecture="gpt2"))
    with pytest.raises(UserError, match="no linear layer"):
        attach(gpt2, AdapterConfig("svd"))
    assert all(p.requires_grad for p in gpt2.parameters())  # nothing was frozen on the way
    model, config = load_model(reference), AdapterConfig("svd")
    attach(model, config)
    with torch.no_grad():
        next(iter(adapters.trained(model).values())).fill_(math.nan)
    with pytest.raises(UserError, match="diverged"):
        save_adapter(model, config, tmp_path / "nan", base=reference)
    for wrong in ({"rank": 0}, {"objectives": 0}, {"preference_rank": 0}, {"alpha": 0.0}, {"kind": "dora"}):
        with pytest.raises(UserError):
            AdapterConfig(**wrong)


def test_a_family_answers_every_weight_and_is_found_again(reference: str, tmp_path: Path) -> None:
    model, config = load_model(reference), AdapterConfig("dense")
    attach(model, config)
    disturb(model)
    save_adapter(model, config, tmp_path / "adapter", base=reference)
    family = ConditionedFamily(
        "joint_soup", str(tmp_path / "adapter"), reference, 2, tmp_path, (Weights((0.5, 0.5)),), {"0.5,0.5": "J"}
    )
    family.save(tmp_path)
    again = load_family(tmp_path)
    assert again.preferences == family.preferences and again.optimises == family.optimises
    policy = again.policy(Weights((0.3, 0.7)))  # not among those it lists
    assert policy.name == "joint_soup@0.3,0.7"
    model_path = Path(policy.path)
    stamp = (model_path / "model.safetensors").stat().st_mtime_ns
    assert again.policy(Weights((0.3, 0.7))).path == policy.path
    assert (model_path / "model.safetensors").stat().st_mtime_ns == stamp  # merged once
    disturb(model)
    save_adapter(model, config, tmp_path / "adapter", base=reference)
    again.policy(Weights((0.3, 0.7)))
    assert (model_path / "model.safetensors").stat().st_mtime_ns != stamp  # and anew from another adapter
    for wrong in (Weights((0.2, 0.3, 0.5)), Direction((0.6, 0.8))):
        with pytest.raises(UserError, match="answers 2 weights"):
            again.policy(wrong)
