"""Shows the guarantees of the join: `python -m benchmarks.das_soak`."""
