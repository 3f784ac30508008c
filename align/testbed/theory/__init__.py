"""Fixed points of update rules and other predictions, exact on the testbed."""
