"""UserError, a mistake that the user can put right, Outage, and how a command reports both: one line, exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in what the user gave (a file, a row, a flag, a full disk). The command line prints it and exits 2."""


class Outage(UserError):
    """A server that training asks is away: nothing that was given is wrong, and the same command goes on later."""


# what safetensors and torch (its writer of zip files: optimizer.pt) raise in types of their own
_FULL = ("No space left on device", "(os error 28)", "File too large", "PytorchStreamWriter failed writing",
         "unexpected pos")  # fmt: skip
_LONGEST = 800  # characters of a message: a value that a user gave may have millions


def disk_is_full(error: BaseException | None) -> bool:
    """Whether the error, or one that it came from, means that the disk or quota is full."""
    while error is not None:
        text = str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(words in text for words in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


# a path that the user can correct; any other error of the system keeps its traceback
PATH_ERRORS = (
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG,
)  # fmt: skip


def guarded(work: Callable[[], int | None]) -> int:
    """Run `work`; a user's mistake, an unusable path, a full disk (all 2) or Ctrl-C (130) is one line on stderr."""
    try:
        return work() or 0
    except UserError as error:
        message = " ".join(str(error).split())
    except OSError as error:
        if disk_is_full(error):
            where = f" while writing {error.filename}" if error.filename else ""
            message = f"no space left on the disk{where}; free some space and run the same command again"
        elif error.filename and error.errno in PATH_ERRORS:
            message = f"{error.filename} cannot be used ({error.strerror}); check the path and its permissions"
        else:
            raise
    except KeyboardInterrupt:
        print("align: interrupted; the same command resumes where it stopped", file=sys.stderr)
        return 130
    if len(message) > _LONGEST:  # its end says how to go on
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
    print(f"align: error: {message}", file=sys.stderr)
    return 2
