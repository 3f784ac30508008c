"""What a training leaves to look at: its curve in the run's `log.jsonl`, and the trackers that the user asks for.

A line of the file is one entry of the trainer's log history: the training's name, the step, and what was logged there
(loss, learning rate, each objective's mean, DPO's accuracies and margins). A resumed training goes on where its
checkpoint stands. Several trainings in one folder (a method's rounds) share the file.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from align.errors import UserError
from align.runs.values import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState, TrainingArguments

LOG_FILE = "log.jsonl"
POINTS = 10  # of the curve of a training that is shorter than its logging interval
PACKAGES = {"comet_ml": "comet-ml", "azure_ml": "azureml-sdk", "dvclive": "dvclive"}  # where pip has another name


def check_trackers(names: Sequence[str]) -> None:
    """UserError for a tracker that transformers does not know, or whose package is not installed."""
    if isinstance(names, str):
        raise UserError(f"report_to is a list of trackers, like [tensorboard], not {names!r}")
    if not names:
        return
    from transformers.integrations import integration_utils

    known = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    for name in names:
        if name not in known:
            raise UserError(
                f"report_to: {name!r} is no tracker; choose tensorboard, wandb, trackio ({', '.join(known)})"
            )
        if name not in integration_utils.get_available_reporting_integrations():
            package = PACKAGES.get(name, name)
            raise UserError(f"report_to: {name} is not installed; run `pip install {package}`, or leave report_to out")


class RunLog(TrainerCallback):
    """Writes every logged entry to `folder/log.jsonl`; a training shorter than its interval logs ten times."""

    def __init__(self, folder: Path, label: str) -> None:
        self.path, self.label = Path(folder) / LOG_FILE, label

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        if state.max_steps <= state.logging_steps:  # no checkpoint lies between: the interval divides save_steps
            state.logging_steps = args.logging_steps = max(1, state.max_steps // POINTS)
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = [line(self.label, entry) for entry in state.log_history]  # up to the checkpoint of a resumed run
            write_text(self.path, "".join([*self._of_others(), *lines]))

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        if state.is_world_process_zero:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line(self.label, state.log_history[-1]))

    def _of_others(self) -> list[str]:
        """The lines of other trainings in the same folder; half a line, left by a kill, is none."""
        if not self.path.is_file():
            return []
        mine = json.dumps({"training": self.label})[:-1] + ","
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [text for text in lines if text.endswith("}\n") and not text.startswith(mine)]


def line(label: str, entry: Mapping[str, object]) -> str:
    """One entry as a line of JSON; a number that is not finite becomes null, which every reader takes."""
    values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
    return json.dumps({"training": label, "step": values.pop("step", None), **values}, ensure_ascii=False) + "\n"


class CloseTrackers(TrainerCallback):
    """Ends a tracker's own run with the training, so that the next point of a family gets one of its own."""

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        if "wandb" in args.report_to and state.is_world_process_zero:
            wandb = importlib.import_module("wandb")

            wandb.finish()


def attach_logs(trainer: Trainer | LoopLog, *, label: str) -> None:
    """Keep the trainer's log in its run's folder, and send it to its trackers under the run's name."""
    from transformers.integrations import TensorBoardCallback

    folder = Path(trainer.args.output_dir).parent
    trainer.args.run_name = f"{label} {folder}".replace(".partial", "")
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            # Its own choice lies among the checkpoints, which are deleted when the training has finished.
            callback.logging_dir = str(folder / "tensorboard" / label.replace("/", "-"))
    trainer.add_callback(RunLog(folder, label))
    trainer.add_callback(CloseTrackers())


class LoopLog:
    """The same for a training loop of our own: `begin`, `step` with the step's numbers after each, `end`.

    `arguments` are those of `base_arguments`; an entry is the mean over the steps since the one before.
    """

    def __init__(
        self, arguments: Mapping[str, Any], *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: str,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:  # fmt: skip
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from transformers.integrations import get_reporting_integration_callbacks
        from transformers.trainer_callback import CallbackHandler

        self.args, self.control = TrainingArguments(**arguments), TrainerControl()
        self.state = TrainerState(max_steps=self.args.max_steps, logging_steps=int(self.args.logging_steps))
        found = [*get_reporting_integration_callbacks(self.args.report_to), *callbacks]
        self.callback_handler = CallbackHandler(found, model, tokenizer, None, None)
        self.since: list[Mapping[str, float]] = []
        attach_logs(self, label=label)

    def add_callback(self, callback: TrainerCallback) -> None:
        self.callback_handler.add_callback(callback)

    def begin(self) -> None:
        self.callback_handler.on_train_begin(self.args, self.state, self.control)

    def step(self, numbers: Mapping[str, float]) -> None:
        self.state.global_step += 1
        self.since.append(numbers)
        if self.state.global_step % self.state.logging_steps == 0:
            logs = {name: sum(one[name] for one in self.since) / len(self.since) for name in numbers}
            self.state.log_history.append({**logs, "step": self.state.global_step})
            self.callback_handler.on_log(self.args, self.state, self.control, logs)
            self.since = []
        self.callback_handler.on_step_end(self.args, self.state, self.control)

    def end(self) -> None:
        self.callback_handler.on_train_end(self.args, self.state, self.control)
