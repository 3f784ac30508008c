"""Metrics as `evaluate.Metric` modules, each in a directory that `evaluate.load` takes as a local path, offline."""
