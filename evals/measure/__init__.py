"""Cells: what is asked of a policy on an item, the engine that asks it, and the store on disk."""
