"""Rows read, weights compared and runs interrupted, for the tests of training stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from align.models import ModelConfig, load_model

SHAPE = ModelConfig(hidden=32, layers=2, heads=2, context=32, dropout=0.1)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_model(folder).state_dict() for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Interrupt(TrainerCallback):
    """Stops the process as an unhandled error does, after a number of steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


def interrupted(monkeypatch: pytest.MonkeyPatch, module: Any, after: int, call: Any) -> None:
    """Run `call` until step `after`, then leave a half-written newer checkpoint behind."""
    finish = module.finish_trainer

    def with_interrupt(trainer: Any, **kwargs: Any) -> Any:
        trainer.add_callback(Interrupt(after))
        return finish(trainer, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "finish_trainer", with_interrupt)
        call()


def half_written(out: Path, step: int) -> None:
    """What a kill in the middle of writing a checkpoint leaves: weights, but no trainer state."""
    folder = out / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"half")
