"""Policies on suites: shifts, judges, stages and the summary of an evaluation."""
