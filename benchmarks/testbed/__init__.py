"""Methods on exact worlds, ranked by regret share."""
