"""The one exception that means "the user can mend this": its message names the place and the mend in one line."""


class UserError(Exception):
    """A mistake in what the user gave (a file, a row, a flag, a full disk). The command line prints it and exits 2."""
