"""One experiment: rows, plan, tasks over workers, sampling, summary, provenance."""
