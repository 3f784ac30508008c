"""Learned rewards that hold: how far from the optimum the best policy under each of them is."""
