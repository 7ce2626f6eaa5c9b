"""Compute what all layers share once: the sines and cosines of the rotary embedding.

Inductor inlines cheap elementwise values into every kernel that reads them, and takes sine and cosine for cheap. A
decoder then computes them again for every head of every layer; after skipping, that is a large share of what is
left. An opaque copy behind them makes Inductor keep the result. The values do not change.
"""

from __future__ import annotations

from torch import fx

from opskip_compile.passes.analysis.dataflow import dataflow
from opskip_compile.passes.graph.origin import Origin, set_origin
from opskip_compile.passes.ops import Trait, having, op_name, tensor
from opskip_compile.passes.runtime import SHARED


def share_rotary_tables(graph: fx.Graph, root: fx.Node) -> int:
    """Put a copy behind every sine and cosine that does not depend on ``root``; returns how many."""
    stream = dataflow(root)
    costly, count = having(Trait.PERIODIC), 0
    for node in list(graph.nodes):
        if op_name(node) not in costly or node in stream or tensor(node) is None:
            continue
        # As far as there is one reader only, what it makes of the value can be kept instead.
        while len(node.users) == 1 and (user := next(iter(node.users))) not in stream:
            if tensor(user) is None or user.op == "output":
                break
            node = user
        if len(node.users) < 2:
            continue
        with graph.inserting_after(node):
            copy = graph.call_function(SHARED, (node,))
        copy.name = f"{node.name}_shared"
        node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
        copy.meta.update(node.meta)
        set_origin(copy, Origin(node.name, node.name))
        count += 1
    return count
