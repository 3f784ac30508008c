"""A stage whose body counts its calls and fails at those that it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from align.runs import Ledger, Run, run_stage


class Body:
    """A stage's body that counts its calls, and fails at those that it is told to."""

    def __init__(self, *, fails: tuple[int, ...] = (), error: Exception | None = None) -> None:
        self.calls, self.fails, self.error = 0, fails, error or RuntimeError("broken")
        self.found: list[set[str]] = []

    def __call__(self, folder: Path, ledger: Ledger) -> Mapping[str, object]:
        self.calls += 1
        self.found.append({p.name for p in folder.iterdir()})
        (folder / f"work-{self.calls}").write_text("half")
        ledger.add(tokens=7, flops=42.0, samples_drawn=3, scores_read=2)
        if self.calls in self.fails:
            raise self.error
        return {"calls": self.calls}


def run(
    path: Path, body: Body, *, config: object = None, stage: str = "s", inputs: dict[str, str] | None = None,
    replace: bool = False,
) -> Run:  # fmt: skip
    return run_stage(path, stage=stage, config=config or {"a": 1}, body=body, inputs=inputs, replace=replace)
