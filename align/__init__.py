"""Alignment research with conflicting objectives: training methods, an exact testbed, and objectives as a library."""

__version__ = "0.1.0"
__project__ = "align-tradeoffs"  # how align/runs/packages.py tells it from another project's package of this name
