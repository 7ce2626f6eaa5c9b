"""What Inductor is told about a rewritten graph. A user's own value of an option goes first."""

from __future__ import annotations

import hashlib
import inspect
import time
from functools import cache
from typing import Any

from torch import fx

from opskip_compile import _compat
from opskip_compile.passes import runtime
from opskip_compile.passes.pipeline import Rewritten
from opskip_compile.passes.tune import causal_attention as attend
from opskip_compile.passes.tune.onednn import use_onednn
from opskip_compile.passes.tune.regions import Layers, share_regions
from opskip_compile.report.report import Report

FUNCTIONS = (runtime.select_rows, runtime.scatter_rows, runtime.causal_mask, runtime.mark_visual, attend.is_causal)


def choose_kernels(captured: fx.Graph, graph: fx.Graph, report: Report) -> None:
    """The last pass but one: linear layers of ``graph`` call oneDNN, in place, on a processor where that is faster.

    A diff compares without it: how a product is computed is a matter of the machine.
    """
    start = time.perf_counter()
    count = use_onednn(graph, captured) if _compat.blas_is_slow() else 0
    report.add_pass("onednn", (time.perf_counter() - start) * 1e3, count)


def with_regions(gm: fx.GraphModule, captured: fx.Graph, graph: fx.Graph, result: Rewritten) -> fx.Graph | None:
    """The last pass: ``graph`` with one region, a submodule of ``gm``, for layers that are alike; None if none are.

    Its result is only lowered; reports and diffs go on showing every layer.
    """
    start = time.perf_counter()
    shared, count = share_regions(gm, graph, Layers.of(captured, result.owners, result.report.operators))
    result.report.add_pass("regions", (time.perf_counter() - start) * 1e3, count)
    return shared if count else None


def config(graph: fx.Graph) -> dict[str, Any]:
    """Inductor config patches for ``graph``.

    * ``realize_reads_threshold``: Inductor inlines a sum into all its readers while it reads no more than four tensors,
      so the residual stream lives as up to five summands at once. Written down at its second reader it is one tensor: a
      quarter less memory in prefill at the same speed.
    * ``unsafe_marked_cacheable_functions``: a second process finds the compiled graph in AOTAutograd's cache.
    """
    return {"realize_reads_threshold": 1, **_compat.allow_caching(graph, FUNCTIONS, _version())}


@cache
def _version() -> str:
    """Changes with the code of `FUNCTIONS` and with what mends Inductor: no code from before is taken from a cache."""
    digest = hashlib.sha256()
    for module in (*_compat.lowering_sources(), attend, runtime):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()
