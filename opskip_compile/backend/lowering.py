"""What Inductor is told about a rewritten graph. A user's own value of an option goes first."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import fx

from opskip_compile import _compat
from opskip_compile.passes import collectives, flex, packages, runtime
from opskip_compile.passes.levels import CHOOSE_LEVEL, KEPT_BY_LEVEL
from opskip_compile.passes.runtime import KEPT_ROWS, PACKED_ROWS
from opskip_compile.passes.scores import CRITICAL_ROWS, ON_HOST
from opskip_compile.passes.tune import causal_attention
from opskip_compile.passes.tune.causal_attention import ATTEND

FUNCTIONS: tuple[Callable[..., Any], ...] = (
    runtime.select_rows,
    runtime.scatter_rows,
    runtime.select_packed,
    runtime.scatter_packed,
    runtime.causal_mask,
    runtime.mark_deepstack,
    runtime.mark_visual,
    runtime.name_rows,
    causal_attention.is_causal,
    packages.attend_by_package,
    flex.attend_by_flex,
    *collectives.EXCHANGES,
)

WAITING = frozenset({ATTEND, CHOOSE_LEVEL, KEPT_BY_LEVEL, ON_HOST, PACKED_ROWS})
"""Operators that read numbers on the host, or copy some to the device."""
SIZED: Mapping[Any, int] = MappingProxyType({KEPT_ROWS: 2, CRITICAL_ROWS: 5})
"""Operators that do so without room, and at which place it is given."""
NOT_RECORDED = (
    "no CUDA graph is recorded of this graph, since it finds the number of kept rows itself. opskip_compile.compile "
    "counts them before, but for levels and for more than four keep shares"
)


def config(graph: fx.Graph) -> dict[str, Any]:
    """Inductor config patches for ``graph``.

    * ``realize_reads_threshold``: Inductor inlines a sum into all its readers while it reads no more than four tensors,
      so the residual stream lives as up to five summands at once. Written down at its second reader it is one tensor: a
      fifth less memory in prefill where no layers share a region, 7 % less where half of them do, at the same speed
      (torch 2.13 and 2.14; ``realize_opusers_threshold`` of 2.14 is about long expressions, and changes neither).
    * ``unsafe_marked_cacheable_functions``: a second process finds the compiled graph in AOTAutograd's cache.
    """
    return {"realize_reads_threshold": 1, **_compat.allow_caching(graph, FUNCTIONS, _version())}


def required(graph: fx.Graph) -> dict[str, Any]:
    """Inductor config patches that ``graph`` is wrong without, whatever a user asks for.

    A CUDA graph repeats what the device did while it was recorded. Inductor leaves out of it what makes sizes, but not
    what waits for numbers or copies them, nor a region that makes sizes inside; and it can't record code that is given
    the several results of an operator left out.
    """
    return {"triton.cudagraphs": False} if any(map(_waits, graph.nodes)) else {}


def _waits(node: fx.Node) -> bool:
    place = SIZED.get(node.target)
    return node.target in WAITING or (place is not None and len(node.args) <= place)


@cache
def _version() -> str:
    """Changes with the code of `FUNCTIONS` and with what mends Inductor: no code from before is taken from a cache."""
    digest = hashlib.sha256()
    for module in (*_compat.lowering_sources(), causal_attention, collectives, flex, packages, runtime):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()
