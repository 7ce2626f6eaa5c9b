"""The tables of README and docs, a function for each, made from the figures in ``benchmarks/results``."""
