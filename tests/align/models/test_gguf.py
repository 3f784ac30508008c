"""align.models.stored.gguf: a file of llama.cpp is read as the model that it was made from, and saved as a folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.errors import UserError
from align.models import gguf_to_folder, load_model, load_tokenizer
from align.runs.contents import model_contents

CHAT = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def _interleaved(weight: Any, heads: int) -> Any:
    """Rows of a query or key matrix in the order that llama.cpp rotates in: pairs side by side, not in halves."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(folder: Path, file: Path) -> Path:
    """A Llama folder as a `.gguf` file: the matrices of the feed-forward layers in blocks of 8 bits, the rest float."""
    gguf = pytest.importorskip("gguf")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    config, writer = model.config, gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    special = set(tokenizer.all_special_ids)
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHAT)
    for name, value in model.state_dict().items():
        array = value.numpy()
        if ".layers." in name:
            layer, part = name.removesuffix(".weight").split("layers.")[1].split(".", 1)
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(NAMES[part])
            array = array if heads is None else _interleaved(array, heads)
            target = f"blk.{layer}.{NAMES[part]}.weight"
            if part.startswith("mlp"):
                blocks = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
                writer.add_tensor(target, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
                continue
        else:
            target = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
                name.removesuffix(".weight")
            ] + ".weight"
        writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file_is_read_and_saved_as_the_model_it_was_made_from(tiny_model: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = write_gguf(tiny_model, tmp_path / "tiny.gguf")
    expected, model, tokenizer = load_model(tiny_model), load_model(file), load_tokenizer(file)
    with torch.no_grad():  # what 8 bits leave of the feed-forward matrices, by the package's own two functions
        for name, value in expected.named_parameters():
            if ".mlp." in name:
                eight = gguf.GGMLQuantizationType.Q8_0
                blocks = gguf.quants.quantize(value.numpy(), eight)
                value.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, eight)))
    original = load_tokenizer(tiny_model)
    text = "bread and 12 bees"
    ids = torch.tensor([original(text).input_ids])
    assert tokenizer(text).input_ids == ids[0].tolist()
    assert (tokenizer.eos_token, tokenizer.pad_token) == (original.eos_token, original.pad_token)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == (
        f"user:hi{original.eos_token}"
    )
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    torch.testing.assert_close(model(input_ids=ids).logits, expected(input_ids=ids).logits)

    folder = gguf_to_folder(file, tmp_path / "plain")
    saved, again = load_model(folder), load_tokenizer(folder)
    assert torch.equal(saved(input_ids=ids).logits, model(input_ids=ids).logits)
    assert again.chat_template == CHAT and again.pad_token_id == original.pad_token_id
    assert saved.generation_config.eos_token_id == original.eos_token_id
    assert saved.generation_config.pad_token_id == original.pad_token_id
    with pytest.raises(UserError, match="is not empty"):
        gguf_to_folder(file, folder)


def test_no_file_is_asked_for_at_the_hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path looks like a hub id: its name went to the hub, and offline every reading waited half a minute."""
    write_gguf(tiny_model, tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def download(name: str, *_: Any, **__: Any) -> str:
        asked.append(name)
        raise OSError("no hub in tests")

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
    assert load_tokenizer("tiny.gguf").pad_token is not None
    assert load_model("tiny.gguf").config.vocab_size > 0
    assert asked == []


def test_a_damaged_file_and_a_missing_package_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF and no more")
    assert model_contents(file) == model_contents(file) != model_contents(tmp_path)
    if importlib.util.find_spec("gguf") is not None:
        with pytest.raises(UserError, match="broken.gguf"):
            load_model(file)
        with pytest.raises(UserError, match="broken.gguf"):
            load_tokenizer(file)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gguf"):
        load_model(file)
    with pytest.raises(UserError, match="pip install gguf"):
        load_tokenizer(file)


def test_only_gguf_files_are_unpacked(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a .gguf file"):
        gguf_to_folder(tiny_model, tmp_path / "plain")
