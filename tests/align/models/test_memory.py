"""What a model of 7.6 billion weights takes, counted on the meta device, and what reading it takes above that."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from align.models import attach_lora, lora_config, shared_backbone
from align.models.load import _scorer_of
from align.models.reading import FLOAT32, Reader, sequence_logprobs
from align.models.shared_backbone import SharedBackbone

GB = 1e9
VOCABULARY, HIDDEN = 152_064, 3584
RANK = 16


def qwen(**changes: Any) -> Any:
    """The shape of Qwen2.5-7B in bfloat16, without memory."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 28, "intermediate_size": 18_944,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    }  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(Qwen2Config(**{**shape, **changes}), dtype=torch.bfloat16)


def size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors, each counted once."""
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())


def shared(layers: int, patch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Bytes of the frozen weights, of all factors and of the heads: a LoRA policy and two reward models on its base."""
    with torch.device("meta"):
        policy: Any = attach_lora(qwen(num_hidden_layers=layers), RANK)
    saved = {n.replace(".default.", "."): p.clone() for n, p in policy.named_parameters() if "lora_" in n}

    def adapter(folder: str) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
        return lora_config(policy.get_base_model(), RANK), dict(saved), torch.empty(1, HIDDEN, device="meta")

    patch.setattr(shared_backbone, "adapter_dir", str)
    patch.setattr(shared_backbone, "require_same_base", lambda folder, base: None)
    patch.setattr(shared_backbone, "read_reward_adapter", adapter)
    backbone = SharedBackbone.of(policy)
    with torch.device("meta"):
        scorers = [backbone.scorer(name, pad_token_id=0) for name in ("helpful", "harmless")]
    parts = [[p for n, p in policy.named_parameters() if ("lora_" in n) is factors] for factors in (False, True)]
    assert size(parts[1]) == 3 * size(saved.values())
    return size(parts[0]), size(parts[1]), size(scorer.head_1H for scorer in scorers)


def test_policy_reference_and_two_reward_models_fit_17_gb_on_one_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (shared(layers, monkeypatch) for layers in (1, 2))
    frozen, factors, heads = (a + 27 * (b - a) for a, b in zip(one, two, strict=True))  # every layer is alike
    assert frozen == 2 * 7_615_616_512  # the reference is the same weights with every adapter off
    assert factors == 3 * 4 * 40_370_176  # of rank 16, in float32
    assert frozen + factors + heads < 17 * GB


def test_a_policy_and_two_separate_reward_models_fit_48_gb() -> None:
    with torch.device("meta"):
        model = qwen()
        policy: Any = attach_lora(qwen(), RANK)
        scorers = [_scorer_of(model, "somewhere") for _ in range(2)]
    assert all(p.dtype == torch.bfloat16 for scorer in scorers for p in scorer.parameters())
    each = size(scorers[0].parameters())
    assert each == 2 * (7_615_616_512 - VOCABULARY * HIDDEN + HIDDEN)  # a head of one output, no output matrix
    assert size(policy.parameters()) + 2 * each < 48 * GB


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_passes_over_a_large_vocabulary_hold_less_than_2_gb(side: str) -> None:
    rows = [(range(512), range(512))] * 32
    reader = Reader(pad_id=0, batch_size=32, side=side)
    for part in reader.passes(rows, vocabulary=VOCABULARY):
        positions = (part.stop - part.start) * (513 if side == "left" else 1024)
        held = min(positions, reader.block_bytes // (FLOAT32 * VOCABULARY))  # a single long row is read in pieces
        logits, logarithms, exponents = (FLOAT32 * held * VOCABULARY for _ in range(3))
        assert logits + logarithms + exponents < 2 * GB
    assert {part.stop - part.start for part in reader.passes(rows, vocabulary=VOCABULARY)} == {1}


def test_reading_a_row_of_1024_tokens_takes_less_than_2_gb_above_the_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    status, marks = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not marks.exists():
        pytest.skip("the high-water mark of memory is Linux's")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=1024,
        )  # fmt: skip
    ).eval()

    def kilobytes(name: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1])

    try:
        marks.write_text("5")
    except OSError:
        pytest.skip("the high-water mark cannot be reset here")
    before = kilobytes("VmRSS")
    (total,) = sequence_logprobs(model, [(range(512), range(512, 1024))], reader=Reader(pad_id=0))
    assert total < 0
    assert 1024 * (kilobytes("VmHWM") - before) < 2 * GB
