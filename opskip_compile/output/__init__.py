"""Files, plots, tables and progress: how results reach a person."""
