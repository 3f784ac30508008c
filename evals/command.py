"""Modules as commands: a user's mistake is one line on stderr and exit code 2, as of the console command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from align.errors import UserError


def told(run: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    """The exit code of `run(argv)`."""
    try:
        return run(argv)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
