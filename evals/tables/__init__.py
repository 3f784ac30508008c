"""Pure tables from cells: trade-offs, shifts, outcomes, rewards."""
