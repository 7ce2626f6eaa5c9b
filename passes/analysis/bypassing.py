"""Values that pass the residual stream by: keys and values of an earlier layer, features made once for every layer.

Dominators need a stream that nothing passes by. What was computed before a sum of the stream and is read again after
it takes no part in the stream itself; its later readers have it as they have a rotary table, as a value from outside.
"""

from __future__ import annotations

import networkx as nx
from torch import fx

from opskip_compile.passes.ops import op_name
from opskip_compile.passes.ops.operation import same_sizes
from opskip_compile.passes.ops.streams import is_as_wide, is_stream, summands, uncast


def without_side_values(root: fx.Node, flow: nx.DiGraph, mixers: frozenset[fx.Node]) -> nx.DiGraph | None:
    """``flow`` without the edges that pass the residual stream by; None if there are none, or one may not be cut.

    An edge may be cut if what passes is neither as wide as the stream (it may be a stream itself) nor made by a mixer
    of rows, and no branch has a second reader: then skipping an operator changes nothing that passes its sum by.

    Args:
        root: where the stream starts.
        flow: all that is computed from it.
        mixers: attention products and convolutions.
    """
    stage = {root: 0}  # how many sums of the stream a value depends on
    mixed: set[fx.Node] = set()  # computed from a mixer of the same stage
    cut: list[tuple[fx.Node, fx.Node]] = []
    last = root
    for node in root.graph.nodes:
        if node not in flow or node is root:
            continue
        before = list(flow.predecessors(node))
        stage[node] = level = max(stage[other] for other in before)
        passing = [other for other in before if stage[other] < level]
        if any(other in mixed or is_as_wide(other, root) for other in passing):
            return None
        cut += [(other, node) for other in passing]
        branch = _branch(node, last, flow)
        if branch is not None:
            if len(list(flow.successors(branch))) > 1:
                return None
            stage[node] += 1
            last = node
        elif before == [last] and is_stream(node) and len(list(flow.successors(last))) == 1:
            last = node  # scaled as a whole
        elif node in mixers or any(other in mixed and stage[other] == level for other in before):
            mixed.add(node)
    if not cut:
        return None
    result: nx.DiGraph = flow.copy()
    result.remove_edges_from(cut)
    return result


def gated_from_outside(entry: fx.Node, region: tuple[fx.Node, ...]) -> bool:
    """True if the region scales its own features of each row by features that are not computed from its entry.

    So it adds something to the stream that is handed to the layer, and is no operator of the stream alone.
    """
    inside = {entry, *region}
    for node in region:
        if (
            op_name(node) != "mul"
            or not is_stream(node)
            or is_as_wide(node, entry)
            or not same_sizes(node, entry, 0, 1)
        ):
            continue
        if any(same_sizes(factor, node) for factor in node.all_input_nodes if factor not in inside):
            return True
    return False


def _branch(node: fx.Node, last: fx.Node, flow: nx.DiGraph) -> fx.Node | None:
    """The other summand, if ``node`` adds something made of the stream to its last value."""
    both = summands(node) if is_stream(node) else None
    terms = [term for term in both or () if term in flow]
    others = [term for term in terms if uncast(term) is not last]
    return others[0] if len(terms) == 2 and len(others) == 1 else None
