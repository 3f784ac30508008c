"""Alignment research with conflicting objectives: training methods, an exact testbed, and objectives as a library."""

__version__ = "0.1.0"
