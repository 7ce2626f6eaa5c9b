"""Where the time of one call on a CPU goes: products of matrices, attention, and everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opskip_compile.passes.ops import operation_named
from opskip_compile.passes.tune import causal_attention, onednn  # noqa: F401  declare the operators of ours
from opskip_compile.timing.profiler import cpu_profiler

KINDS = ("products", "attention", "other")


def seconds_by_kind(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one ``call`` by kind, as ``torch.profiler`` has them: of an operation itself, without those it calls.

    Kernels that Inductor generated are no operations of torch; together with all of Python they are ``other``.
    """
    with cpu_profiler() as profiler:
        call()
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return seconds


def kind_of(name: str) -> str:
    """The kind of an operation with a name such as ``aten::addmm`` or ``opskip::attend``."""
    library, _, operation = name.partition("::")
    entry = operation_named(operation if library == "aten" else name)
    if entry is not None:
        return "attention" if entry.product and entry.mixes_rows else "products" if entry.product else "other"
    # Kernels that an operation of the table calls have names of their own.
    words = operation.strip("_").split("_")
    if library not in ("aten", "mkl", "mkldnn"):
        return "other"
    if "attention" in words:
        return "attention"
    return "products" if "linear" in words else "other"
