"""The console command `align`: one sub-command per recipe, user mistakes in one line, nothing heavy until it is needed.

align COMMAND --help
"""

from __future__ import annotations

import difflib
import errno
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from align import __version__, threads
from align.errors import UserError

# command -> (module with main(argv), the line shown by `align --help`)
COMMANDS = {
    "demo": ("recipes.demo", "the exact testbed end to end: worlds, methods, shifts, report"),
    "hh": ("recipes.hh", "real preference data end to end: pretraining to report"),
    "pretrain": ("recipes.pretrain", "text -> a causal language model from scratch (maximum likelihood)"),
    "sft": ("recipes.sft", "a model + demonstrations -> a supervised fine-tuned model, the reference"),
    "reward-model": ("recipes.reward_model", "a model + comparisons -> one reward model (Bradley-Terry)"),
    "finetune": ("recipes.finetune", "METHOD: the reference + objectives + weights -> a policy family"),
    "evaluate": ("recipes.evaluate", "policies on held-out prompts, or one on suites under shifts -> cells, tables"),
    "planted": ("recipes.planted", "tiny models with a planted mechanism of failure, and the probes' view of them"),
    "compare": ("recipes.compare", "two evaluations of suites, paired item by item"),
    "attribute": ("recipes.attribute", "why a policy fails under shifts: competing, mismatched, or unreadable to it"),
    "report": ("recipes.report", "summary.json -> one self-contained report.html"),
}

# a path that the user can mend; any other error of the system keeps its traceback
PATH_ERRORS = (
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG,
)  # fmt: skip


def usage() -> str:
    """The text of `align --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {promise}" for name, (_, promise) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: align COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "align COMMAND --help lists the command's options.",
        ]
    )


def guarded(work: Callable[[], int | None]) -> int:
    """Run `work`; a user's mistake, an unusable path, a full disk (all 2) or Ctrl-C (130) is one line on stderr."""
    try:
        return work() or 0
    except UserError as error:
        message = " ".join(str(error).split())
    except OSError as error:
        from align.runs import disk_is_full

        if disk_is_full(error):
            place = f" while writing {error.filename}" if error.filename else ""
            message = f"no space left on the disk{place}; free some space and run the same command again"
        elif error.filename and error.errno in PATH_ERRORS:
            message = f"{error.filename} cannot be used ({error.strerror}); check the path and its permissions"
        else:
            raise
    except KeyboardInterrupt:
        print("align: interrupted; the same command resumes where it stopped", file=sys.stderr)
        return 130
    print(f"align: error: {message}", file=sys.stderr)
    return 2


def dispatch(argv: Sequence[str]) -> int:
    """Choose the recipe by its command name, set the threads, import it and run it."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"align {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {argv[0]!r}; {hint}")
    threads.one_thread()  # before anything imports torch
    return importlib.import_module(COMMANDS[argv[0]][0]).main(list(argv[1:])) or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `align`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: dispatch(arguments))


def script(command: str) -> None:
    """What `python recipes/X.py` runs: the same as `align X`.

    Python puts the script's folder first on the path, where `evaluate.py` would hide the library of that name.
    """
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if str(Path(entry or ".").resolve()) != here]
    raise SystemExit(main([command, *sys.argv[1:]]))


if __name__ == "__main__":
    raise SystemExit(main())
