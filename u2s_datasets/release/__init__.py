"""The way out: what may leave a run, whether it is good enough to leave, and its publication."""
