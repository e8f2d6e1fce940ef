"""Speed and quality tables: each script prints its table and writes benchmarks/results/*.csv."""
