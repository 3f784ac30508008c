"""Fixed points of update rules against the optimum, over drawn problems."""
