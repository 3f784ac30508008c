"""Bridges to other harnesses: `lm_eval` runs its tasks on our policies, Inspect's viewer opens our cells."""
