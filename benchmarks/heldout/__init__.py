"""Methods against mismatched generalization, judged on families of shifts that they never saw."""
