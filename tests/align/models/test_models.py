"""align.models: the shapes that a config gives, loading with errors that name the fix, dropout, counting, LoRA."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import (
    ModelConfig,
    attach_lora,
    build_model,
    context_of,
    count_parameters,
    load_model,
    load_scorer,
    load_tokenizer,
    save_model,
    set_dropout,
)

SMALL = {"hidden": 32, "layers": 2, "heads": 2, "context": 64}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_built_causal_model_has_the_configured_shape_and_survives_a_round_trip(
    architecture: str, tokenizer: Any, tmp_path: Path
) -> None:
    model = build_model(ModelConfig(architecture=architecture, dropout=0.1, **SMALL), tokenizer, seed=3)
    ids = torch.tensor([[5, 6, 7]])
    assert model(input_ids=ids).logits.shape == (1, 3, len(tokenizer))
    assert context_of(model) == 64
    assert model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id == model.config.pad_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    save_model(model, tokenizer, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert torch.equal(loaded.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    # Dropout was for the training of this model: nothing that loads the checkpoint inherits it.
    assert torch.equal(loaded.train()(input_ids=ids).logits, loaded.eval()(input_ids=ids).logits)


def test_building_is_seeded_and_leaves_the_global_generator_alone(tokenizer: Any) -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, second, other = (build_model(ModelConfig(**SMALL), tokenizer, seed=s) for s in (1, 1, 2))
    assert torch.rand(1) == expected
    weights = [m.get_input_embeddings().weight for m in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_dropout_acts_in_training_mode_only_and_can_be_set_again(architecture: str, tokenizer: Any) -> None:
    model = build_model(ModelConfig(architecture=architecture, **SMALL), tokenizer, seed=0)
    ids = torch.tensor([[5, 6, 7, 8]])

    def differs() -> bool:
        return not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)

    model.train()
    assert not differs()
    set_dropout(model, 0.3)
    assert differs()
    model.eval()
    assert not differs()
    model.train()
    set_dropout(model, 0.0)
    assert not differs()


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_what_is_passed_to_the_attention_function_is_switched_off(p: float, tokenizer: Any) -> None:
    """`attention_dropout` is no module: with 0 two passes are equal, and with more the residual branches alone drop."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        attention_dropout=0.5, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(shape).train()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    set_dropout(model, p)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits) == (p == 0)
    assert [layer.self_attn.attention_dropout for layer in model.model.layers] == [0.0, 0.0]
    assert model.config.attention_dropout == 0.0


def test_llama_dropout_is_on_both_residual_branches(tokenizer: Any) -> None:
    model = build_model(ModelConfig(**SMALL), tokenizer, seed=0).train()
    set_dropout(model, 0.5)
    layer = model.model.layers[0]
    out = layer.mlp(torch.ones(1, 50, 32))
    assert 0.4 < (out == 0).float().mean() < 0.6
    hidden = torch.randn(1, 50, 32)
    attended = layer.self_attn(hidden, position_embeddings=model.model.rotary_emb(hidden, torch.arange(50)[None]))[0]
    assert 0.4 < (attended == 0).float().mean() < 0.6


def test_parameters_are_counted_by_hand(tokenizer: Any) -> None:
    v, h, f = len(tokenizer), 32, 88  # 8/3 x 32 = 85.3, rounded up to a multiple of 8
    assert ModelConfig(**SMALL).feed_forward == f
    layer = 4 * h * h + 3 * h * f + 2 * h
    body = 2 * layer + h
    tied = build_model(ModelConfig(**SMALL), tokenizer, seed=0)
    assert count_parameters(tied, embeddings=True) == v * h + body
    assert count_parameters(tied, embeddings=False) == v * h + body  # the tied table is the output matrix
    untied = build_model(ModelConfig(tie=False, **SMALL), tokenizer, seed=0)
    assert count_parameters(untied, embeddings=True) == 2 * v * h + body
    assert count_parameters(untied, embeddings=False) == v * h + body
    gpt2 = build_model(ModelConfig(architecture="gpt2", **SMALL), tokenizer, seed=0)
    assert count_parameters(gpt2, embeddings=True) - count_parameters(gpt2, embeddings=False) == 64 * h  # positions


def test_lora_starts_as_the_base_model_and_trains_only_the_adapter(tiny_model: Path) -> None:
    base = load_model(tiny_model).eval()
    ids = torch.tensor([[5, 6, 7]])
    before = base(input_ids=ids).logits
    lora = attach_lora(base, 4)
    assert torch.equal(lora.eval()(input_ids=ids).logits, before)
    trainable = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name and ".default." in name for name in trainable)
    assert len(trainable) == 2 * 7 * 2  # A and B on the seven matrices of both layers, never the output
    layer = next(m for m in lora.modules() if hasattr(m, "lora_A"))
    assert layer.scaling["default"] == 2.0


def test_an_adapter_directory_loads_merged(tiny_model: Path, tmp_path: Path) -> None:
    lora = attach_lora(load_model(tiny_model), 2)
    for name, p in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    ids = torch.tensor([[5, 6, 7]])
    expected = lora.eval()(input_ids=ids).logits
    save_model(lora, load_tokenizer(tiny_model), tmp_path)
    loaded = load_model(tmp_path).eval()
    assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-5)
    assert not any("lora" in name for name, _ in loaded.named_parameters())


def test_loading_is_in_float32_whatever_the_checkpoint_says(tiny_model: Path, tmp_path: Path) -> None:
    save_model(load_model(tiny_model).to(torch.bfloat16), load_tokenizer(tiny_model), tmp_path)
    assert load_model(tmp_path).dtype == torch.float32
    assert load_scorer(tmp_path, pad_token_id=0, eos_token_id=1).dtype == torch.float32


@pytest.mark.parametrize(
    ("missing", "said"),
    [("config.json", "no config.json"), ("tokenizer*", "no tokenizer"), ("*.safetensors", "no model could be read")],
)
def test_an_incomplete_directory_is_one_line_that_names_it(
    missing: str, said: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    for file in folder.glob(missing):
        file.unlink()
    with pytest.raises(UserError, match=said) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_id_that_cannot_be_reached_and_damaged_weights_are_one_line(tiny_model: Path, tmp_path: Path) -> None:
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match="nobody/nothing") as caught:
            load("nobody/nothing")
        assert "\n" not in str(caught.value)
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="damaged"):
        load_model(folder)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"architecture": "mamba"}, "llama, gpt2, bert"),
        ({"hidden": 30, "heads": 4}, "not a multiple"),
        ({"hidden": 6, "heads": 2}, "even"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
    ],
)
def test_an_impossible_shape_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ModelConfig(**wrong)


def test_a_tokenizer_without_an_end_is_refused_and_a_missing_pad_becomes_the_end(
    tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="no end-of-text token"):
        build_model(ModelConfig(**SMALL), bare, seed=0)
    bare.eos_token = "<|end|>"
    bare.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(tmp_path).pad_token == "<|end|>"


def test_a_scorer_with_two_outputs_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    save_model(model, load_tokenizer(tiny_model), tmp_path)
    with pytest.raises(UserError, match="2 outputs"):
        load_scorer(tmp_path, pad_token_id=0, eos_token_id=1)
