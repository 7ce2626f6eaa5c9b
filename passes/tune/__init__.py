"""Passes that make the rewritten graph faster and leave its values as they are."""
