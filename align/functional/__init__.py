"""Formulae as pure functions: no file is read, nothing is logged, no trainer is imported."""
