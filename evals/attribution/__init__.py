"""Why a policy fails under a shift: probes, signals, regions of a mechanism, and their validation."""
