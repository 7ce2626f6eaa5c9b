"""What to skip: schedules, the published ones, and what they cost in FLOPs."""
