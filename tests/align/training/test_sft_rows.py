"""Rows of SFT: long ones left out or cut, those that a template cannot say counted, the format kept with the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.errors import UserError
from align.models import load_model, load_tokenizer
from align.models.formats import formatter, stored_format
from align.runs import Ledger
from align.training.bits import completion_bits
from align.training.sft import SFTConfig_, sft, training_rows
from align.turns import Turn, transcript
from factories.chat_styles import chat_checkpoint
from recipes.commands.sft import main

SYSTEM = transcript((Turn("system", "Be kind"), Turn("user", "Sit here")))
ROWS = [
    {"prompt": "Sit here", "completion": " the start"},
    {"prompt": "Sit here", "completion": " the start in the sea and the stir"},
    {"prompt": "Sit here and stir the tin in the sea " * 3, "completion": " a"},
    {"prompt": SYSTEM, "completion": " a"},
]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_checkpoint("gemma", tmp_path_factory.mktemp("gemma") / "model")


def test_long_rows_are_left_out_or_cut_without_an_end(gemma: Path) -> None:
    tokenizer = load_tokenizer(gemma)
    form = formatter(tokenizer)
    whole = [[*head, *tail] for head, tail in (form.row(row["prompt"], row["completion"]) for row in ROWS[:2])]
    limit = len(whole[0])
    kept = training_rows(ROWS, tokenizer, limit=limit)
    assert [row["input_ids"] for row in kept.rows] == whole[:1]
    assert kept.too_long == 2 and kept.left_out == {"unsupported_system": 1}
    head = form.prompt_ids("Sit here")
    assert kept.rows[0]["labels"] == [-100] * len(head) + whole[0][len(head) :]
    cut = training_rows(ROWS, tokenizer, limit=limit, cut=True)
    assert [row["input_ids"] for row in cut.rows] == [whole[0], whole[1][:limit]]
    assert form.format.end not in cut.rows[1]["labels"] and cut.too_long == 2
    with pytest.raises(UserError, match="none of the 1 demonstrations fits .*unsupported_system': 1"):
        training_rows(ROWS[3:], tokenizer, limit=limit)


def test_the_format_is_settled_and_kept_in_the_saved_model(tmp_path: Path) -> None:
    """Chosen by the first stage that trains; a later one inherits it, and refuses another."""
    base, rows = chat_checkpoint("base", tmp_path / "base"), ROWS[:1]
    config = SFTConfig_(max_steps=1, batch_size=1, save_steps=None, template="hh")
    metrics = sft(config, model=base, rows=rows, out=tmp_path / "one", ledger=Ledger(), validation=[*rows, ROWS[3]])
    assert metrics["trained_on"] == 1 and metrics["too_long"] == 0 and "left_out" not in metrics
    saved = load_tokenizer(tmp_path / "one" / "model")
    fmt = stored_format(saved)
    assert fmt is not None and fmt.template == "hh" and formatter(saved).text("hot?") == "\n\nHuman: hot?\n\nAssistant:"
    with pytest.raises(UserError, match="was trained with template hh"):
        sft(SFTConfig_(template="plain"), model=tmp_path / "one" / "model", rows=rows, out=tmp_path, ledger=Ledger())


def test_bits_of_replies_pass_over_what_the_template_cannot_say(gemma: Path) -> None:
    model, tokenizer = load_model(gemma), load_tokenizer(gemma)
    assert completion_bits(model, tokenizer, ROWS[:1]) == completion_bits(model, tokenizer, [ROWS[0], ROWS[3]])
    assert completion_bits(model, tokenizer, ROWS[:1]).bytes == len("the start")  # a chat has no space before a reply


def test_the_flag_of_the_command_reaches_the_saved_model(tmp_path: Path) -> None:
    base = chat_checkpoint("thinking", tmp_path / "base")
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "Sit here", "completion": "the start"}\n', encoding="utf-8")
    flags = ["--model", str(base), "--data", str(data), "--out", str(tmp_path / "run"), "--max-steps", "1"]
    assert main([*flags, "--chat-template-kwargs", '{"enable_thinking": false}']) == 0
    saved = load_tokenizer(tmp_path / "run" / "model")
    assert formatter(saved).text("hot?").endswith("<think>\n\n</think>\n\n")
