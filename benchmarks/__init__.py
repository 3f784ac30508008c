"""Benchmarks, one folder each: a run, its plan and stages, a table and a page. One thread per process."""

from align.runs.threads import one_thread

one_thread()  # before a benchmark imports numpy or torch
