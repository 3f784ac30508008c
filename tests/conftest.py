"""What every test shares: one thread, no network, and tiny models and rows that cost milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from align.runs.threads import one_thread

one_thread()  # before a test imports torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["bread", "cheese", "tea", "boats", "rope", "glue", "knives", "bees", "clay", "paint", "ink", "wool"]


def pytest_configure(config: pytest.Config) -> None:
    """torch, if some plugin has imported it already, obeys the one thread too."""
    one_thread()


@pytest.fixture(autouse=True)
def no_chosen_formats() -> Iterator[None]:
    """A command run in this process chooses a checkpoint's prompt format for the rest of it: not for the next test."""
    yield
    if (tokenizers := sys.modules.get("align.models.tokenizers")) is not None:
        tokenizers._CHOSEN.clear()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("ALIGN_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ALIGN_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Path, Iterable[Mapping[str, Any]]], Path]:
    """Write rows as JSON lines and return the path."""

    def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `align ARGUMENTS` in a process of its own, offline and with one thread (tests/factories/commands.py)."""
    from factories.commands import run_forked

    def run(*arguments: str | Path, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        return run_forked([*map(str, arguments)], timeout=timeout)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a 2-layer Llama of width 32 and a byte-level tokenizer, made without our own code."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|pad|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [" ".join(WORDS)], trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny bandit's reference model, in which every token ends a response. Read by all tests, written by none."""
    from factories.tiny_bandit import make_reference

    return make_reference(tmp_path_factory.mktemp("reference") / "model")


@pytest.fixture(scope="session")
def many_tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same whose responses end at the end token only."""
    from factories.tiny_bandit import make_reference

    return make_reference(tmp_path_factory.mktemp("many-tokens") / "model", one_token=False)


@pytest.fixture(scope="session")
def tiny_rows(
    tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[[Path, Iterable[Mapping[str, Any]]], Path]
) -> dict[str, Path]:
    """Files of made rows, one per kind: text, demonstrations, comparisons, prompts."""
    folder = tmp_path_factory.mktemp("rows")
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b][:48]
    prompts = [{"id": str(i), "prompt": f"explain {a} and {b} :"} for i, (a, b) in enumerate(pairs)]
    rows: dict[str, list[dict[str, Any]]] = {
        "text": [
            {"text": f"People sell {a} beside the {b} and they keep some {a} for winter {i}."}
            for i, (a, b) in enumerate(pairs)
        ],
        "demonstrations": [
            {"prompt": row["prompt"], "completion": f" sure {a} is {b}"}
            for row, (a, b) in zip(prompts, pairs, strict=True)
        ],
        "comparisons": [
            {**row, "chosen": f" sure {a} is {b} and {a}", "rejected": f" sorry {b}"}
            for row, (a, b) in zip(prompts, pairs, strict=True)
        ],
        "prompts": prompts,
    }
    return {kind: write_rows(folder / f"{kind}.jsonl", content) for kind, content in rows.items()}
