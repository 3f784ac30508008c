"""The directory of the `evaluate` module `expected_calibration_error`, which `evaluate.load` takes as a local path."""
