"""Adapters for the tools of others."""
