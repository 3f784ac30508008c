"""Evaluation: cells on disk, statistics over them, trade-off and generalization tables, and the report."""

__project__ = "align-tradeoffs"  # how align/runs/packages.py tells it from another project's package of this name
