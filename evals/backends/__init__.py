"""Backends: what stands between the harness and a model; lists in, lists out."""
