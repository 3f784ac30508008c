"""Real preference data end to end: rows, stages, judging, summary."""
