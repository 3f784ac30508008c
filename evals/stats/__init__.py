"""Statistics as pure functions: intervals, paired tests, power, calibration, robustness."""
