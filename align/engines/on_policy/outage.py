"""An outage while a policy trains: its last whole step is kept as a checkpoint, from which the same command goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from transformers import TrainerCallback

from align.errors import Outage
from align.runs import last_checkpoint

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState


class StepStart(TrainerCallback):
    """What sampling changes before scores are asked, as it was at the step's start: random states, tokens counted."""

    def __init__(self) -> None:
        self.restore: Callable[[], None] | None = None

    def on_step_begin(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
        import torch

        python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        tokens = state.num_input_tokens_seen
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

        def restore() -> None:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
            state.num_input_tokens_seen = tokens

        self.restore = restore


def kept(trainer: Trainer, start: StepStart, error: Outage) -> Outage:
    """The error with the step that training goes on from, after that step's checkpoint is on disk.

    The step in which the server was away is drawn again as it was: a resumed run ends in the weights of one that was
    never stopped.
    """
    step, folder = trainer.state.global_step, trainer.args.output_dir
    if step and start.restore is not None:
        newest = last_checkpoint(folder)
        if newest is None or newest.name != f"checkpoint-{step}":
            start.restore()
            trainer._save_checkpoint(trainer.model, None)
    return Outage(f"{error}; training goes on from step {step} of {trainer.state.max_steps}")
