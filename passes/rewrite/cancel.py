"""Selections and scatters of the same rows that meet undo each other.

``select(scatter(h, rows, x), rows)`` is ``x``, and a scatter over a scatter of the same rows replaces it. Through a
run of skipped operators the kept rows so stay compact, and the full sequence is only written where all rows are read.
"""

from __future__ import annotations

from torch import fx

from opskip_compile.passes.ops import mutated_nodes
from opskip_compile.passes.rewrite.selection import is_scatter, is_selection


def cancel(graph: fx.Graph) -> int:
    """Apply both rules everywhere; returns how often. Sound because `kept_rows` names no row twice."""
    count = 0
    # A stream that the model writes to in place is not what the scatter made any more.
    mutated = mutated_nodes(graph)
    for node in list(graph.nodes):
        if not (is_selection(node) or is_scatter(node)):
            continue
        inner = node.args[0]
        if not (isinstance(inner, fx.Node) and is_scatter(inner) and inner.args[1] is node.args[1]):
            continue
        if inner in mutated or inner.args[0] in mutated:
            continue
        if is_selection(node):
            if node.args[2] != 1:
                continue
            node.replace_all_uses_with(inner.args[2])
            graph.erase_node(node)
        else:
            node.update_arg(0, inner.args[0])
        count += 1
    return count
