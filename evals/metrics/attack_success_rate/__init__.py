"""The directory of the `evaluate` module `attack_success_rate`, which `evaluate.load` takes as a local path."""
