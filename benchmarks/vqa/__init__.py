"""Ten visual question answering tasks with fixed splits; `benchmarks.vqa.tasks.TASKS` holds them by name."""
