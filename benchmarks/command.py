"""What the commands of the benchmarks share: common options, one sitting of a plan, tables on disk."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from align.errors import UserError, guarded
from align.runs import Call, read_json
from evals.items import Fields, Json


def parser(about: str, *, module: str) -> argparse.ArgumentParser:
    """A parser that shows the module's docstring as it is."""
    shape = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=about, formatter_class=shape, prog=f"python -m {module}")


def sitting(found: argparse.ArgumentParser, *, out: str) -> argparse.ArgumentParser:
    """The options of a command that runs a plan; `out` says in words where its runs lie by default."""
    found.add_argument("--workers", type=int, default=2, help="processes of one thread each; 0: all in this one")
    found.add_argument("--minutes", type=float, default=None, help="start no new stage after so many minutes")
    found.add_argument("--out", type=Path, default=None, help=f"where the runs lie (default: {out})")
    found.add_argument("--publish", type=Path, default=None, help="folder for the page, its numbers and figures")
    return found


def run_plan(calls: Sequence[Call], arguments: argparse.Namespace, *, label: str) -> None:
    """Run what is not finished within the sitting's minutes; says how much is left."""
    from recipes.pipeline.tasks import run_calls

    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    left = run_calls(calls, workers=arguments.workers, label=label, deadline=deadline)
    if left:
        print(f"{label}: {left} of {len(calls)} stages left; the same command goes on", file=sys.stderr)


def read_table(file: Path, *, hint: str) -> Json:
    """A JSON table; UserError with the command that makes it where it is missing, or the place of its damage."""
    if not file.is_file():
        raise UserError(f"{file} is missing; {hint}")
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{file} is damaged (no JSON object); {hint}")
    return values


def write_table(file: Path, table: Fields) -> None:
    """Published numbers: keys in order, one number a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main(work: Callable[[argparse.Namespace], int | None], options: argparse.ArgumentParser,
         argv: Sequence[str] | None) -> int:  # fmt: skip
    """Parse, work, and print a user's mistake as one line."""
    return guarded(lambda: work(options.parse_args(argv)))
