"""The directory of the `evaluate` module `hypervolume`, which `evaluate.load` takes as a local path."""
