"""FLOPs of a graph, read off the shapes of its matrix products: one multiply-add is 2, everything else is free.

This count knows no config and no formula of a decoder layer, so it checks `opskip_compile.schedule.flops`, which knows
nothing else. It counts the products of the graph as they stand: a batch with its padding, a static cache in full.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import fx

from opskip_compile.passes.graph.origin import captured_place
from opskip_compile.passes.graph.sizes import Sizes
from opskip_compile.passes.ops import Call, call_of, names, op_name

log = logging.getLogger(__name__)


def count_by_operator(graph: fx.Graph, owners: Mapping[str, str], sizes: Sizes) -> dict[str, int] | None:
    """FLOPs of every operator; None where a size is not known.

    Args:
        graph: the captured graph or what the passes made of it.
        owners: name of a captured node -> the operator that it belongs to.
        sizes: shapes of the nodes.
    """
    total = dict.fromkeys(owners.values(), 0)
    counted = names(lambda operation: operation.flops is not None)
    for node in graph.nodes:
        owner = owners.get(captured_place(node)) if op_name(node) in counted else None
        if owner is not None:
            call = call_of(node)
            try:
                flops = None if call is None else _count(call, sizes)
            except Exception:  # a number in a report is no reason to lose a graph
                log.debug("FLOPs of %s", node.name, exc_info=True)
                flops = None
            if flops is None:
                return None
            total[owner] += flops
    return total


def _count(call: Call, sizes: Sizes) -> int | None:
    def shape(operand: Any) -> tuple[int, ...] | None:
        known = sizes.shape(operand) if isinstance(operand, fx.Node) else None
        numbers = tuple(size for size in known or () if isinstance(size, int))
        return numbers if known is not None and len(numbers) == len(known) else None

    return None if call.operation.flops is None else call.operation.flops(call, shape)
