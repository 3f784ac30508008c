"""Consistency training: a finished policy is taught to do under a shift what it does on the plain prompt."""
