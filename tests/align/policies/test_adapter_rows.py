"""Conditioned adapters in a batch: each row follows its own preference, merged, generating, turned off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.models import count_parameters, load_model
from align.policies import conditioned as adapters
from align.policies.conditioned import AdapterConfig, adapted_layers, attach, merge, save_adapter
from factories.adapter_kinds import ALL, IDS, KINDS, ROWS, layer_of, name_of
from factories.conditioned_models import disturb
from factories.tiny_bandit import WORDS


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
