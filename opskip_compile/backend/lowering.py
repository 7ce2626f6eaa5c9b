"""What Inductor is told about a rewritten graph. A user's own value of an option goes first."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import fx

from opskip_compile import _compat
from opskip_compile.passes import collectives, flex, packages, runtime
from opskip_compile.passes.tune import causal_attention

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


def config(graph: fx.Graph) -> dict[str, Any]:
    """Inductor config patches for ``graph``.

    * ``realize_reads_threshold``: Inductor inlines a sum into all its readers while it reads no more than four tensors,
      so the residual stream lives as up to five summands at once. Written down at its second reader it is one tensor: a
      fifth less memory in prefill where no layers share a region, 7 % less where half of them do, at the same speed
      (torch 2.13 and 2.14; ``realize_opusers_threshold`` of 2.14 is about long expressions, and changes neither).
    * ``unsafe_marked_cacheable_functions``: a second process finds the compiled graph in AOTAutograd's cache.
    """
    return {"realize_reads_threshold": 1, **_compat.allow_caching(graph, FUNCTIONS, _version())}


@cache
def _version() -> str:
    """Changes with the code of `FUNCTIONS` and with what mends Inductor: no code from before is taken from a cache."""
    digest = hashlib.sha256()
    for module in (*_compat.lowering_sources(), causal_attention, collectives, flex, packages, runtime):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()
