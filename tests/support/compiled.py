"""Columns "ways to compile" and "export"."""
