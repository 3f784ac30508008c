"""The provenance of a number: versions, machine and the commit of this repository."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "moocore", "numpy")


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The repository's commit, with "+changes" when files differ from it; None outside a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed from a wheel: another repository's commit would be a false witness
        return None
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes else "")


def environment() -> dict[str, object]:
    """Versions and machine facts that belong to the provenance of every number."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "commit": commit(),
        "versions": versions,
    }
