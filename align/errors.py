"""UserError, the mistake that a user can put right, and how a command reports it: one line and exit code 2."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in what the user gave (a file, a row, a flag, a full disk). The command line prints it and exits 2."""


# a path that the user can mend; any other error of the system keeps its traceback
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
