"""Benches: every figure is a ratio of two things measured in the same run. `python -m benchmarks` runs them."""
