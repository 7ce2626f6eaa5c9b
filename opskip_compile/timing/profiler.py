"""The profiler of torch, on a CPU."""

from __future__ import annotations

import os

from torch.profiler import ProfilerActivity, profile


def cpu_profiler(memory: bool = False) -> profile:
    """A context that records what is called in it, and with ``memory`` what is allocated.

    It prints nothing: the library under it would write two lines to stderr whenever it starts and stops.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read when a process profiles for the first time
    # One cycle; torch 2.11 warns of what would be lost from several.
    return profile(activities=[ProfilerActivity.CPU], profile_memory=memory, acc_events=True)
