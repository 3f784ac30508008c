"""Folders as `align suites` leaves them, made without a model: outcomes at rates of one's own, and a summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

SHIFTS = {"none": "none", "base64": "encoding", "aim": "persona"}  # shift -> family
HOW = {
    "completion": {"max_new_tokens": 512, "temperature": 0.0, "stop": []},
    "verdict": {"judge": "llm", "version": "1-A", "fingerprint": "abc"},
    "template": {"template": "chat", "chat_template_kwargs": {}},
}  # fmt: skip


def made_evaluation(
    folder: Path, *, asr: float = 0.1, over_refusal: float = 0.1, seed: int = 0, items: int = 60, can_fail: bool = True,
    how: Mapping[str, Any] | None = None, version: str = "1-A", suite: str = "made",
) -> Path:  # fmt: skip
    """An evaluation in which a harmful item is answered with chance `asr` (twice that under a shift), and a benign one
    is refused with chance `over_refusal`. Unless the judge `can_fail`, harmful items are refused or unclear.
    """
    rng, rows = Random(seed), []
    for shift in SHIFTS:
        for i in range(items):
            harmful = i % 2 == 1
            rate = over_refusal if not harmful else asr if shift == "none" else min(2 * asr, 1.0)
            failed = rng.random() < rate
            sees = can_fail or not harmful
            verdict = ("BAD" if sees else "UNCLEAR") if failed else "GOOD"
            rows.append({
                "item": f"q{i}", "cluster": f"q{i}", "shift": shift, "harmful": harmful, "group": "", "sample": 0,
                "can_fail": sees, "suite": suite, "verdict": verdict, "missing": None,
            })  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "outcomes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    modes = {"none": "none", "base64": "mismatched", "aim": "competing"}
    shifts = {s: {"family": f, "mode": modes[s], "about": "", "version": version} for s, f in SHIFTS.items()}
    summary = {
        "model": folder.name, "fingerprint": f"f{seed}", "how": {**HOW, **(how or {})}, "shifts": shifts,
        "suites": {suite: {"version": "1-A"}},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
