"""Thin scripts over the libraries `align` and `evals`, one per stage, and the console command `align`."""

__project__ = "align-tradeoffs"  # how align/runs/packages.py tells it from another project's package of this name
