"""The packages `align`, `evals` and `recipes` that Python finds are of this project, or one line says whose they are.

pip lets two projects install one package name into one environment: the later one's files replace the earlier one's
without a word. PyPI's `evals` is such a project.
"""

from __future__ import annotations

import sys
from importlib import metadata, util
from pathlib import Path

from align.errors import UserError

PROJECT = "align-tradeoffs"
PACKAGES = ("align", "evals", "recipes")
_FIX = f"install {PROJECT} in an environment of its own"


def check_packages() -> None:
    """UserError where Python finds another project's package under one of our names; a note on stderr where another
    project has its files in the folder of ours, which replaces some of them.
    """
    for name in PACKAGES:
        spec = util.find_spec(name)
        place = None if spec is None or spec.origin is None else Path(spec.origin)
        if place is None or not place.is_file() or PROJECT not in place.read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"the package {name} is another project's ({place or 'not found'}); {_FIX}")
        other = _sharing(name, place.parent)
        if other is not None:
            print(
                f"align: note: {other} has its files in the package {name}, too, and is broken; {_FIX}", file=sys.stderr
            )


def _sharing(name: str, folder: Path) -> str | None:
    """The project called `name`, with its version, where it installed files into this folder."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    theirs = [file for file in found.files or () if file.parts[0] == name]
    same = bool(theirs) and Path(str(found.locate_file(name))).resolve() == folder.resolve()
    return f"{name} {found.version}" if same else None
