"""The testbed: worlds whose best possible trade-off is known exactly."""
