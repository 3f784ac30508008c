"""Evaluation: cells on disk, statistics over them, trade-off and generalization tables, and the report."""
