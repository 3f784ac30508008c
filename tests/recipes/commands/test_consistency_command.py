"""`align consistency` from end to end on a tiny chat model: pairs, both kinds, the format it keeps, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.models import load_model, load_tokenizer
from align.models.formats import stored_format
from align.runs import open_run
from evals.shifts import SHIFTS
from factories.chat_styles import chat_checkpoint
from recipes.commands.consistency import main, pairs_of

SMALL = ("training.batch_size=2", "training.gradient_accumulation=1", "training.max_new_tokens=4", "training.lora_r=2")
STEPS = ("--max-steps", "2", "--set", *SMALL[:1], "--set", SMALL[1], "--set", SMALL[2], "--set", SMALL[3])


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_checkpoint("chatml", tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def prompts(tmp_path: Path, write_rows: Callable[..., Path]) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", [{"prompt": "the tides"}, {"prompt": "a stone"}])


def test_a_pair_is_a_prompt_and_what_the_shift_makes_of_it() -> None:
    from random import Random

    (pair,) = pairs_of(["the tides"], ["rot13"], seed=0, drops=Counter())
    made: Any = SHIFTS["rot13"].encode("the tides", Random(0))
    assert pair.plain == "the tides" and pair.shifted == made.turns[-1].content != pair.plain


@pytest.mark.parametrize("kind", ["outputs", "activations"])
def test_a_chat_policy_is_trained_in_its_own_format(
    kind: str, chat_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / kind
    asked = [str(chat_model), "--data", str(prompts), "--shift", "leetspeak", "--kind", kind, "--out", str(out), *STEPS]
    assert main(asked) == 0
    run = open_run(out)
    assert run.metrics["pairs"] == 2 and run.metrics["trained_on"] == 4  # and each plain prompt with itself
    fmt = stored_format(load_tokenizer(out))
    assert fmt is not None and fmt.template == "chat"
    before, after = load_model(chat_model).state_dict(), load_model(out).state_dict()
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    made = (out / "run.json").stat().st_mtime_ns
    assert main(asked) == 0 and (out / "run.json").stat().st_mtime_ns == made  # finished: used again
    assert "loss" in capsys.readouterr().out


def test_the_reference_is_asked_for_before_anything_is_read(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--reference"):
        main(["nowhere", "--data", str(prompts), "--shift", "leetspeak", "--set", "training.embeddings=restored"])


def test_a_shift_that_makes_no_prompt_is_refused(chat_model: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="makes no other prompt"):
        main([str(chat_model), "--data", str(prompts), "--shift", "none", "--out", str(tmp_path / "out")])
