"""Passes that bring a captured graph into one form, without changing what it computes."""
