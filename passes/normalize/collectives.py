"""Write exchanges between processes as one function each, so that a row selection can be moved above them.

PyTorch starts a collective and waits for it in two operations. Where nothing stands between the two, as wherever a
model calls ``torch.distributed`` or a ``DTensor`` changes its placement, they are one value.
"""

from __future__ import annotations

from torch import fx

from opskip_compile._compat import collectives
from opskip_compile.passes.collectives import EXCHANGES
from opskip_compile.passes.graph.origin import Origin, set_origin

_INSTEAD = dict(
    zip(
        map(collectives.name_of, (collectives.ALL_REDUCE, collectives.REDUCE_SCATTER, collectives.ALL_GATHER)),
        EXCHANGES,
        strict=True,
    )
)
_WAIT = collectives.name_of(collectives.WAIT)


def lift_collectives(graph: fx.Graph) -> int:
    """Replace every collective that is waited for at once; returns how many."""
    lifted = 0
    for node in list(graph.nodes):
        started = node.args[0] if collectives.name_of(node.target) == _WAIT and len(node.args) == 1 else None
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


def exchanged_in(graph: fx.Graph) -> list[str]:
    """The groups whose processes exchange values in a graph, as far as they are `EXCHANGES`; in order, once each."""
    return list(dict.fromkeys(str(node.args[-1]) for node in graph.nodes if node.target in EXCHANGES))
