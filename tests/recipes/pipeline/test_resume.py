"""`kill -9` in the middle of a stage, then the same command: the same weights as a run that nobody disturbed."""

from __future__ import annotations

import json
from pathlib import Path

from factories.commands import kill_when, run_forked


def test_a_killed_training_stage_resumes_from_its_checkpoint(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    def command(out: Path) -> list[str]:
        words = ["sft", "--model", tiny_model, "--data", tiny_rows["demonstrations"], "--out", out]
        steps = [
            "training.save_steps=20",
            "training.batch_size=8",
            "training.dropout=0.1",
            "training.learning_rate=1e-3",
        ]
        return [*map(str, words), "--max-steps", "150"] + [
            word for step in steps for word in ("--set", step)
        ]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_forked(command(whole)).returncode == 0
    checkpoints = tmp_path / "broken.partial" / "checkpoints"
    kill_when(command(broken), ready=lambda: any(checkpoints.glob("checkpoint-*/trainer_state.json")))
    assert not broken.exists(), "a killed stage looks finished"
    done = run_forked(command(broken))
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((run / "run.json").read_text()) for run in (whole, broken))
    assert second["metrics"] == first["metrics"] and second["fingerprint"] == first["fingerprint"]
    assert second["ledger"]["tokens"] < first["ledger"]["tokens"], "it started again instead of resuming"
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, broken)]
    assert weights[0] == weights[1]


def test_a_killed_evaluation_resumes_after_its_last_cells(
    tiny_model: Path, tiny_rows: dict[str, Path], tmp_path: Path
) -> None:
    """Completed (row, preference, shift) files stay; the summary is that of an undisturbed run."""
    family = tmp_path / "family"
    family.mkdir()
    points = {"1,0": str(tiny_model), "0.5,0.5": str(tiny_model), "0,1": str(tiny_model)}
    content = {"kind": "points", "method": "dpo", "points": points, "optimises": {}, "point_cost": "train"}
    (family / "family.json").write_text(json.dumps(content))
    config = tmp_path / "evaluate.yaml"
    config.write_text(
        f"runs: [{family}]\nreference: {tiny_model}\ndata: [{tiny_rows['prompts']}]\nsampling: {{max_new_tokens: 24}}\n"
        "objectives:\n  - {kind: length, per: character, name: long}\n  - {kind: length, name: wordy}\n"
    )

    def command(out: Path) -> list[str]:
        return ["evaluate", "--config", str(config), "--out", str(out)]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_forked(command(whole)).returncode == 0
    parts = tmp_path / "broken.partial" / "parts"
    kill_when(command(broken), ready=lambda: any(parts.glob("0001.jsonl")))
    assert not broken.exists()
    done = run_forked(command(broken))
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((run / "summary.json").read_text()) for run in (whole, broken))
    assert second["ledger"]["evaluate"]["samples_drawn"] < first["ledger"]["evaluate"]["samples_drawn"]
    for summary in (first, second):
        summary.pop("ledger")
        summary["provenance"].pop("config")
    assert second == first
    assert (whole / "cells.jsonl").read_bytes() == (broken / "cells.jsonl").read_bytes()
