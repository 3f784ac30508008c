"""Cost: exact evaluation, the harness, memory of a shared backbone."""
