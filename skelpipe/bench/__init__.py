"""Benchmarks: each measures a plain way and ours in the same run, on generated recordings."""
