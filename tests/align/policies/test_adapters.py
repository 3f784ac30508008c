"""Conditioned adapters: their algebra against their formulae and dense matrices."""

from __future__ import annotations

import pytest
import torch

from align.models import load_model
from align.policies import conditioned as adapters
from align.policies.conditioned import AdapterConfig, adapted_layers, attach
from factories.adapter_kinds import ALL, IDS, KINDS, LINEAR, ROWS, layer_of, name_of


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
