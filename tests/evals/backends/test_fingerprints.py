"""The fingerprint of a model in memory: another one for whatever changes an answer, the same for everything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align.models import load_model, load_tokenizer, lora_config
from align.models.formats import Choice
from evals.backends.fingerprints import model_fingerprint, tokenizer_fingerprint
from evals.backends.transformers import TransformersBackend
from factories.chat_styles import chat_checkpoint, chat_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_checkpoint("chatml", tmp_path_factory.mktemp("chatml"), hidden=16)


def backend(checkpoint: Path, change: Callable[[Any, Any], None] = lambda model, tokenizer: None, **how: Any) -> str:
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    change(model, tokenizer)
    return TransformersBackend(model, tokenizer, name="a", **how).fingerprint


def rope(model: Any, tokenizer: Any) -> None:
    model.config.rope_parameters["rope_theta"] = 5e5


def epsilon(model: Any, tokenizer: Any) -> None:
    model.config.rms_norm_eps = 1e-3


def activation(model: Any, tokenizer: Any) -> None:
    model.config.hidden_act = "gelu"


def ends(model: Any, tokenizer: Any) -> None:
    model.generation_config.eos_token_id = [2, 7]


def template(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant \n")


@pytest.mark.parametrize("change", [rope, epsilon, activation, ends, template])
def test_what_changes_an_answer_is_another_model(checkpoint: Path, change: Callable[[Any, Any], None]) -> None:
    assert backend(checkpoint, change) != backend(checkpoint)


@pytest.mark.parametrize("how", ["hh", Choice("chat", {"date": "2025-01-31"}), Choice("chat", {"thinking": True})])
def test_another_format_is_another_model(checkpoint: Path, how: str | Choice) -> None:
    assert backend(checkpoint, template=how) != backend(checkpoint)
    assert backend(checkpoint, template="chat") == backend(checkpoint, template=Choice("chat"))


def place(model: Any, tokenizer: Any) -> None:
    model.config._name_or_path = "elsewhere"
    model.config.architectures = ["Another"]
    model.config.attention_dropout = 0.5
    model.config.use_cache = False


def padding(model: Any, tokenizer: Any) -> None:
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=4)


@pytest.mark.parametrize("change", [place, padding])
def test_what_changes_no_answer_does_not(checkpoint: Path, change: Callable[[Any, Any], None]) -> None:
    assert backend(checkpoint, change) == backend(checkpoint)


def test_a_padded_call_leaves_the_tokenizer_what_it_is() -> None:
    tokenizer = chat_tokenizer("llama3")
    fresh = tokenizer_fingerprint(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert tokenizer_fingerprint(tokenizer) == fresh
    tokenizer.add_tokens(["tea"])
    assert tokenizer_fingerprint(tokenizer) != fresh


def test_an_adapters_scale_counts(checkpoint: Path) -> None:
    from peft import get_peft_model

    found = []
    for alpha in (8, 8, 32):
        torch.manual_seed(0)
        base = load_model(checkpoint)
        config = lora_config(base, 4)
        config.lora_alpha = alpha
        found.append(model_fingerprint(get_peft_model(base, config)))
    assert found[0] == found[1] != found[2]


def test_each_adapter_on_a_shared_backbone_has_its_own(checkpoint: Path, tmp_path: Path) -> None:
    from peft import get_peft_model

    from align.models.backbones import ModelPool

    for i, name in enumerate("abc"):
        torch.manual_seed(i)
        base = load_model(checkpoint)
        model = get_peft_model(base, lora_config(base, 2))
        for key, p in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(p)
        model.save_pretrained(tmp_path / name)
        load_tokenizer(checkpoint).save_pretrained(tmp_path / name)
    pool = ModelPool()
    views = [pool.model(str(tmp_path / name)) for name in "ab"]
    prints = [model_fingerprint(view) for view in views]
    assert len({*prints, model_fingerprint(load_model(checkpoint))}) == 3
    pool.model(str(tmp_path / "c"))
    assert [model_fingerprint(view) for view in views] == prints, "what else is loaded does not count"
