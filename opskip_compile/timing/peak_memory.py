"""Peak memory of one call, on a CPU and on a GPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from opskip_compile.timing.profiler import cpu_profiler


def peak_bytes(call: Callable[[], Any], device: str = "cpu") -> int:
    """Most bytes that torch's allocator held at once during ``call``, above what it held before.

    On a CPU they are read off the allocations in a profiler trace, which are exact and do not depend on what the
    process keeps for later; on a GPU they are the caching allocator's own count. What the call returns is held until
    it ends, so it counts.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    with cpu_profiler(memory=True) as profiler:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    held = most = 0
    for event in changes:
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most
