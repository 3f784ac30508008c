"""Files of conditioned adapters: saved and loaded, a family found again, what is damaged or does not fit refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from align.errors import UserError
from align.models import load_model
from align.policies import conditioned as adapters
from align.policies.conditioned import AdapterConfig, ConditionedFamily, attach, load_adapter, save_adapter
from align.policies.load import load_family
from align.preferences import Direction, Weights
from factories.adapter_kinds import ALL, IDS, ROWS, name_of
from factories.conditioned_models import disturb
from factories.tiny_bandit import make_reference


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
