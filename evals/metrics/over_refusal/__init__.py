"""The directory of the `evaluate` module `over_refusal`, which `evaluate.load` takes as a local path."""
