"""Benchmarks: what a schedule saves in time and memory, against plain Inductor in the same run."""
