"""An adapter whose weights are missing, or are not those of its base, is refused: PEFT would begin with new ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from align.errors import UserError
from align.models import load_model, load_tokenizer
from align.models.load import load_with_adapter

FILE = "adapter_model.safetensors"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(load_model(tiny_model), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(folder: Path, words: str) -> None:
    for load in (load_model, load_with_adapter):
        with pytest.raises(UserError, match=words) as caught:
            load(str(folder))
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_and_an_empty_one(folder: Path) -> None:
    load_model(str(folder))
    (folder / FILE).write_bytes(b"")
    refused(folder, "")
    (folder / FILE).unlink()
    refused(folder, "")


@pytest.mark.parametrize("change", ["one lacks", "none is there", "one too many"])
def test_factors_that_are_not_those_of_the_base(folder: Path, change: str) -> None:
    tensors = load_file(folder / FILE)
    name, value = next(iter(tensors.items()))
    if change == "one too many":
        tensors[name.replace("layers.0", "layers.7")] = value.clone()
    kept = {} if change == "none is there" else {k: v for k, v in tensors.items() if k != name or "many" in change}
    save_file(kept or {"another.weight": torch.zeros(1)}, folder / FILE)
    refused(folder, "its weights are not those of its base")


def test_an_adapter_of_a_deeper_model(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    shutil.copytree(tiny_model, shallow)
    model = load_model(tiny_model)
    model.config.num_hidden_layers = 1
    model.model.layers = model.model.layers[:1]
    model.save_pretrained(shallow)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_model), str(shallow)))
    refused(folder, "its weights are not those of its base")
