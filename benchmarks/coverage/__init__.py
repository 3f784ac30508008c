"""Simulated coverage of every interval that a table prints."""
