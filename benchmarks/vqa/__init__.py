"""Ten visual question answering tasks with fixed splits; `vqa.tasks.TASKS` holds them by name.

The folder `benchmarks/` has to be on `sys.path`.
"""
