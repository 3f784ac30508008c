"""Supervised fine-tuning: where the loss falls, what is learned with and without an adapter, resuming bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import load_model, load_tokenizer
from align.runs import Ledger
from align.training.bits import completion_bits
from align.training.sft import SFTConfig_, sft
from factories.training_runs import half_written, interrupted, read, same_weights


def test_sft_puts_the_loss_on_the_completion_and_its_end_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.training import sft as stage

    seen: list[Mapping[str, Any]] = []
    finish = stage.finish_trainer

    def spy(trainer: Any, **kwargs: Any) -> Any:
        seen.append(next(iter(trainer.get_train_dataloader())))
        return finish(trainer, **kwargs)

    monkeypatch.setattr(stage, "finish_trainer", spy)
    row = {"prompt": "explain bread :", "completion": " sure f1", "id": "not a column for TRL"}
    metrics = sft(
        SFTConfig_(max_steps=1, batch_size=1, save_steps=None),
        model=tiny_model,
        rows=[row],
        out=tmp_path,
        ledger=Ledger(),
    )
    tokenizer = load_tokenizer(tiny_model)
    end = tokenizer.eos_token_id
    prompt, completion = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
    assert seen[0]["input_ids"].tolist() == [[*prompt, *completion, end]]
    labels = seen[0]["labels"][0].tolist()
    assert labels == [-100] * len(prompt) + completion + [end]
    # The first logged loss is the mean over those labels of the model that came in.
    with torch.no_grad():
        logp = load_model(tiny_model)(input_ids=seen[0]["input_ids"]).logits[0].log_softmax(-1)
    expected = -sum(logp[i - 1, label].item() for i, label in enumerate(labels) if label != -100)
    assert metrics["loss"] == pytest.approx(expected / (len(completion) + 1), rel=1e-4)


def test_sft_learns_the_demonstrations_and_their_end(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"prompt": row["prompt"], "completion": " sure"} for row in read(tiny_rows["demonstrations"])]
    long = {"prompt": "z" * 200, "completion": " never seen"}
    ledger = Ledger()
    config = SFTConfig_(max_steps=60, learning_rate=2e-2, save_steps=None)
    metrics = sft(config, model=tiny_model, rows=[long, *rows], validation=rows, out=tmp_path, ledger=ledger)
    assert (metrics["trained_on"], metrics["too_long"]) == (len(rows), 1)
    assert metrics["bits_per_byte"] < 0.2
    model, tokenizer = load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    ids = tokenizer(rows[0]["prompt"], return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(made) == " sure<|end|>"
    # The tokens that TRL fed, padding excluded: 60 steps of 16 rows with their ends.
    mean = sum(len(tokenizer(r["prompt"] + r["completion"])["input_ids"]) + 1 for r in rows) / len(rows)
    assert ledger.tokens == pytest.approx(60 * 16 * mean, rel=0.02)


def test_sft_with_an_adapter_saves_a_merged_model_that_learned(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"prompt": row["prompt"], "completion": " sure"} for row in read(tiny_rows["demonstrations"])]
    before = completion_bits(load_model(tiny_model), load_tokenizer(tiny_model), rows).per_byte
    config = SFTConfig_(max_steps=40, learning_rate=2e-2, lora_r=8, save_steps=None)
    metrics = sft(config, model=tiny_model, rows=rows, validation=rows, out=tmp_path, ledger=Ledger())
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    merged = load_model(tmp_path / "model")
    assert completion_bits(merged, load_tokenizer(tmp_path), rows).per_byte == pytest.approx(metrics["bits_per_byte"])
    assert metrics["bits_per_byte"] < 0.95 * before
    embeddings = [m.get_input_embeddings().weight for m in (merged, load_model(tiny_model))]
    assert torch.equal(*embeddings)  # the adapter is on the linear layers only


def test_an_adapter_on_a_tied_embedding_is_one_model_merged_or_kept(tiny_model: Path, tmp_path: Path) -> None:
    """Merged into the one matrix that input and output share, it would change the output, too."""
    rows, found = [{"prompt": "explain bread :", "completion": " sure"}] * 8, []
    ids = torch.tensor([[5, 60, 7, 90]])
    for merge in (True, False):
        config = SFTConfig_(
            max_steps=4, batch_size=4, learning_rate=3e-2, lora_r=4, save_steps=None,
            lora_targets=("embed_tokens", "q_proj"), merge_adapter=merge,
        )  # fmt: skip
        sft(config, model=tiny_model, rows=rows, out=tmp_path / str(merge), ledger=Ledger())
        with torch.no_grad():
            found.append(load_model(tmp_path / str(merge)).eval()(ids).logits)
    torch.testing.assert_close(*found, atol=2e-5, rtol=1e-4)


def test_an_interrupted_sft_resumes_to_the_same_weights(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.training import sft as stage

    rows = read(tiny_rows["demonstrations"])
    config = SFTConfig_(max_steps=6, batch_size=8, dropout=0.1, save_steps=2, logging_steps=2)

    def call(name: str) -> dict[str, Any]:
        return sft(config, model=tiny_model, rows=rows, out=tmp_path / name, ledger=Ledger(), validation=rows[:4])

    whole = call("whole")
    interrupted(monkeypatch, stage, 5, lambda: call("again"))
    half_written(tmp_path / "again", 6)
    assert call("again") == whole
    assert same_weights(tmp_path / "whole" / "model", tmp_path / "again" / "model")


def test_sft_names_the_row_that_is_wrong(tiny_model: Path, tmp_path: Path) -> None:
    good = {"prompt": "a", "completion": " b"}
    config = SFTConfig_(max_length=8)
    for rows, said in (
        ([good, {"prompt": "a", "completion": ""}], "row 2 has no prompt or no completion"),
        ([{"prompt": "a" * 50, "completion": " b"}], "none of the 1 demonstrations fits 8 tokens"),
    ):
        with pytest.raises(UserError, match=said):
            sft(config, model=tiny_model, rows=rows, out=tmp_path, ledger=Ledger())
