"""Run directories: a stage's config, metrics, compute ledger and model, written atomically, reused and resumed.

A stage works in `<path>.partial/`, writes `run.json` last, and the folder is renamed to `<path>/`: a folder of that
name is finished or does not exist. A second call with the same fingerprint (stage, config, fingerprints of its
inputs) does nothing. Nothing is removed that does not carry a mark of these stages (`folders.py`).
"""

from align.errors import disk_is_full
from align.runs.checkpoints import last_checkpoint
from align.runs.environment import commit, environment
from align.runs.ledger import Ledger, Workspace
from align.runs.lifecycle import run_stage
from align.runs.reading import RUN_FILE, Run, is_gguf, model_dir, open_run, split_head
from align.runs.stage import Call, Metrics, Stage, planned, stage
from align.runs.values import fingerprint, jsonable, name_today, read_json, write_json, write_text

__all__ = [
    "RUN_FILE",
    "Call",
    "Ledger",
    "Metrics",
    "Run",
    "Stage",
    "Workspace",
    "commit",
    "disk_is_full",
    "environment",
    "fingerprint",
    "is_gguf",
    "jsonable",
    "last_checkpoint",
    "model_dir",
    "name_today",
    "open_run",
    "planned",
    "read_json",
    "run_stage",
    "split_head",
    "stage",
    "write_json",
    "write_text",
]
