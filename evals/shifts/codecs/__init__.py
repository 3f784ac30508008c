"""Reversible codes of a text, and how well a reader of a code must read it."""
