"""One file per sub-command of align."""
