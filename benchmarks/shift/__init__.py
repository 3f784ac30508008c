"""Fronts under shift on the testbed and on HH rows."""
