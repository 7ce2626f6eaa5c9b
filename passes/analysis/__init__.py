"""Passes that only read: where the rows are, which operators there are, and what to skip."""
