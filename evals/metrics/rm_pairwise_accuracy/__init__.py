"""The directory of the `evaluate` module `rm_pairwise_accuracy`, which `evaluate.load` takes as a local path."""
