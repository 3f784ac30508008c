"""Trainers on the conformance world: which J each one optimises, at its own defaults."""
