"""Measurements of speed, compile time and accuracy, run as ``python -m benchmarks.NAME``."""
