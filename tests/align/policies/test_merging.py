"""What adds up: the soup of two copies is the copy, or one line; a trained model merges with its own reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.errors import UserError
from align.models import load_model, load_tokenizer
from align.policies.merging import check_mergeable
from align.policies.soups import merge
from factories.made_models import make_adapter
from factories.tiny_bandit import make_reference

IDS = torch.tensor([[2, 5, 4]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_reference(tmp_path_factory.mktemp("base") / "model")


def logits(path: str) -> torch.Tensor:
    with torch.no_grad():
        return load_model(path).eval()(IDS).logits


def copies(base: str, folder: Path, **settings: Any) -> list[str]:
    one = make_adapter(base, folder / "a", r=2, seed=1, **settings)
    shutil.copytree(one, folder / "b")
    return [one, str(folder / "b")]


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": []},
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5, "v_proj": 7}},
        {"init_lora_weights": "gaussian"},
        {"lora_dropout": 0.3},
    ],
)
def test_two_copies_are_one(settings: dict[str, Any], base: str, tmp_path: Path) -> None:
    both = copies(base, tmp_path, **settings)
    if "modules_to_save" in settings:  # PEFT writes null for an empty list
        for folder in both:
            file = Path(folder) / "adapter_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    soup = merge(both, weights=[0.25, 0.75], out=tmp_path / "soup")
    torch.testing.assert_close(logits(soup), logits(both[0]), atol=1e-5, rtol=1e-4)
    assert not (Path(soup) / "model.safetensors").exists()  # factors only


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = olora"),
        ({"trainable_token_indices": [2, 5]}, "trainable_token_indices"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias = lora_only"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save"),
    ],
)
def test_what_is_not_known_to_add_up_is_one_line(
    settings: dict[str, Any], named: str, base: str, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    targets = {"target_modules": ["q_proj", "v_proj"], **settings}
    get_peft_model(load_model(base), LoraConfig(task_type="CAUSAL_LM", r=2, **targets)).save_pretrained(tmp_path / "a")
    load_tokenizer(base).save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match=f"{named}.* does not merge exactly"):
        merge([str(tmp_path / "a"), str(tmp_path / "b")], weights=[0.5, 0.5], out=tmp_path / "soup")


@pytest.mark.parametrize(
    "change",
    [{"lora_bias": True}, {"kasa_config": {"beta": 0.1}}, {"layer_replication": [[0, 1]]}, {"a_new_setting": "on"}],
)
def test_settings_that_a_later_library_writes_are_refused_unless_off(
    change: dict[str, Any], base: str, tmp_path: Path
) -> None:
    both = copies(base, tmp_path)
    file = Path(both[1]) / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **dict.fromkeys(change), "another": False}))
    assert check_mergeable(both) == "adapter"
    file.write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=next(iter(change))):
        check_mergeable(both)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_that_change_their_base_add_up_in_full(start: str, base: str, tmp_path: Path) -> None:
    both = copies(base, tmp_path, init_lora_weights=start)
    soup = merge(both, weights=[0.5, 0.5], out=tmp_path / "soup", adapter_merge="full")
    torch.testing.assert_close(logits(soup), logits(both[0]), atol=1e-4, rtol=1e-4)


def test_an_adapter_adds_up_with_its_own_base(base: str, tmp_path: Path) -> None:
    one = make_adapter(base, tmp_path / "a", r=2, seed=1)
    soup = merge([one, base], weights=[1.5, -0.5], out=tmp_path / "soup", extrapolate=True)  # base + 1.5 of the change
    changed, plain = (dict(load_model(path).named_parameters()) for path in (one, base))
    for name, value in load_model(soup).named_parameters():
        torch.testing.assert_close(value, 1.5 * changed[name] - 0.5 * plain[name], atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="train all of them the same way"):
        merge([one, make_reference(tmp_path / "other", seed=9)], weights=[0.5, 0.5], out=tmp_path / "x")


def test_a_trained_model_adds_up_with_the_checkpoint_it_came_from(base: str, tmp_path: Path) -> None:
    """A hub checkpoint: bfloat16, without a padding id, its tokenizer file cutting texts; training writes all three."""
    hub = tmp_path / "hub"
    model = load_model(base, dtype="bfloat16")
    model.config.pad_token_id, model.config.eos_token_id = None, [1, 2]
    model.save_pretrained(hub)
    load_tokenizer(base).save_pretrained(hub)
    file = hub / "tokenizer.json"
    content = json.loads(file.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(content))
    trained = load_model(hub)
    with torch.no_grad():
        trained.model.norm.weight += 0.125
    trained.config.pad_token_id, trained.config.eos_token_id = 0, 1
    trained.save_pretrained(tmp_path / "trained")
    load_tokenizer(base).save_pretrained(tmp_path / "trained")
    soup = merge([str(tmp_path / "trained"), str(hub)], weights=[0.5, 0.5], out=tmp_path / "soup")
    norm = load_file(Path(soup) / "model.safetensors")["model.norm.weight"]
    assert norm.dtype == torch.float32 and torch.equal(norm, trained.model.norm.weight - 0.0625)
    config = json.loads((tmp_path / "trained" / "config.json").read_text())
    (tmp_path / "trained" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(UserError, match="differ in rms_norm_eps"):
        merge([str(tmp_path / "trained"), str(hub)], weights=[0.5, 0.5], out=tmp_path / "again")
