"""The README's example runs as pasted and ends in its assertion; its five files and its commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from factories.sources import ROOT
from recipes.cli import COMMANDS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_as_pasted(tmp_path: Path) -> None:
    """About 20 seconds on an idle core; the limit is for a busy machine."""
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert "\nassert 0 < regret" in example
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=400, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of the reference model's regret" in done.stdout


def test_five_files_are_named_to_be_read() -> None:
    section = README.partition("## Read these five files")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\d\. \[[^\]]+\]\(", section, flags=re.M)) == 5  # that they exist is in test_pages.py


def test_commands_exist() -> None:
    named = set(re.findall(r"^    align ([a-z-]+) ", README, flags=re.M))
    assert named and named <= set(COMMANDS)
