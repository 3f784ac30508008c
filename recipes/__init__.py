"""Thin scripts over the libraries `align` and `evals`, one per stage, and the console command `align`."""
