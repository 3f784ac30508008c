"""Folders that a training keeps for itself until its model is saved: claimed by a mark, and only then ever removed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from align.errors import UserError

MARK = ".align-scratch"


def claim(folder: str | Path) -> Path:
    """The folder, created and marked; UserError when it exists and holds what no training put there."""
    folder = Path(folder)
    if not (folder / MARK).is_file() and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is in the way and no training made it (it has no {MARK}); move it away")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    return folder


def drop(folder: str | Path) -> None:
    """Remove a claimed folder; one that carries no mark stays as it is."""
    if (Path(folder) / MARK).is_file():
        shutil.rmtree(folder, ignore_errors=True)


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete trainer checkpoint of a claimed folder; interrupted writes of checkpoints are deleted."""
    complete = []
    for candidate in Path(folder).glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-([0-9]+)", candidate.name)
        if step is None or candidate.is_symlink() or not (Path(folder) / MARK).is_file():
            continue
        try:
            json.loads((candidate / "trainer_state.json").read_text(encoding="utf-8"))  # the Trainer writes it last
            complete.append((int(step[1]), candidate))
        except (OSError, ValueError):
            shutil.rmtree(candidate)
    return max(complete)[1] if complete else None
