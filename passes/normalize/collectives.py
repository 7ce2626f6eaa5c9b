"""Write exchanges between processes as one function each, so that a row selection can be moved above them.

PyTorch starts a collective and waits for it in two operations. Where nothing stands between the two, as wherever a
model calls ``torch.distributed`` or a ``DTensor`` changes its placement, they are one value.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from opskip_compile._compat import collectives
from opskip_compile.passes.collectives import EXCHANGES, OF_ALL, SAME_ROWS, all_gather, all_reduce, reduce_scatter
from opskip_compile.passes.graph.origin import Origin, origin, set_origin

_INSTEAD: dict[str, Any] = {
    collectives.ALL_REDUCE: all_reduce,
    collectives.REDUCE_SCATTER: reduce_scatter,
    collectives.ALL_GATHER: all_gather,
}


def lift_collectives(graph: fx.Graph) -> int:
    """Replace every collective that is waited for at once; returns how many."""
    lifted = 0
    for node in list(graph.nodes):
        started = node.args[0] if collectives.name_of(node.target) == collectives.WAIT and len(node.args) == 1 else None
        if not isinstance(started, fx.Node) or not _is_plain(started, node):
            continue
        with graph.inserting_before(node):
            new = graph.create_node("call_function", _INSTEAD[collectives.name_of(started.target)], started.args)
        new.meta = dict(node.meta)
        set_origin(new, Origin(node.name, like=node.name, twin=True))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        graph.erase_node(started)
        lifted += 1
    return lifted


def _is_plain(started: fx.Node, waits: fx.Node) -> bool:
    """True if nobody else reads what is not there yet, nothing stands in between, and the group is known by name."""
    alone = list(started.users) == [waits] and started.next is waits
    known = collectives.name_of(started.target) in _INSTEAD
    return known and alone and not started.kwargs and isinstance(started.args[-1], str)


def drop_idle_checks(graph: fx.Graph) -> int:
    """Let processes not compare their rows where none are exchanged after all; returns how many checks go."""
    needed = {node.args[-1] for node in graph.nodes if node.target is OF_ALL}
    for node in graph.nodes:
        source = origin(node) if node.target in EXCHANGES else None
        if source is not None and source.rows:
            needed.add(node.args[-1])
    idle = [node for node in graph.nodes if node.target is SAME_ROWS and node.args[-1] not in needed]
    for node in idle:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    return len(idle)
