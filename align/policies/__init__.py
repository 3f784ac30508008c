"""Kinds of policy and of policy family, one file per kind, and the reader of saved families."""
