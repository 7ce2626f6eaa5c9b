"""The table of the code that Inductor writes for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tables import figures

_ATTENTION = "aten._scaled_dot_product_"


def code() -> str:
    """A row for each contender."""
    header = ("model", "contender", "kernels", "launches", "calls of libraries", "the host waits in", "CUDA graphs")
    return figures.table(header, map(_row, figures.read("gpu_code/cuda_code")["found"]))


def _row(found: Mapping[str, Any]) -> tuple[str, ...]:
    libraries = {key.removeprefix(_ATTENTION): n for key, n in found["extern"].items() if not key.startswith("opskip.")}
    ours = {"attend": found["extern"].get("opskip.attend", 0)}  # an attention, too
    waits = {key.removeprefix("opskip."): n for key, n in found["host_waits"].items()}
    recorded = "recorded" if found["recorded_parts"] else "-"
    numbers = (str(found["kernels"]), str(found["launches"]))
    calls = _counted({**libraries, **{key: n for key, n in ours.items() if n}})
    return found["model"], found["contender"], *numbers, calls, _counted(waits) or "-", recorded


def _counted(calls: Mapping[str, int]) -> str:
    return ", ".join(f"{n} `{name}`" if name.isidentifier() else f"{n} {name}" for name, n in calls.items())
