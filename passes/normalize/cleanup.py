"""Remove what no result depends on, so that a dead reader never keeps a value alive in full."""

from __future__ import annotations

from torch import fx

from opskip_compile._compat import keep_dynamo
from opskip_compile.passes.collectives import OF_ALL, SAME_ROWS
from opskip_compile.passes.levels import LEVELS
from opskip_compile.passes.ops import Trait, having, is_inplace, known_operations, op_name
from opskip_compile.passes.runtime import KEPT_ROWS, PACKED_ROWS, SCATTERING, SELECTING, causal_mask
from opskip_compile.passes.scores import SCORING

# Exported programs check the data type of every cast: what the trace has shown already.
_NOISE = ("_log_api_usage_once", "_assert_tensor_metadata.default")
_OURS = (
    frozenset({causal_mask, KEPT_ROWS, PACKED_ROWS, *SCATTERING, *SELECTING}) | SCORING | LEVELS | {OF_ALL, SAME_ROWS}
)


def is_removable(node: fx.Node) -> bool:
    """True if ``node`` only computes: no effect, no memory of others written."""
    if node.op not in ("call_function", "call_method") or is_inplace(node):
        return False
    if node.target in _OURS or getattr(node.target, "__name__", "") in _NOISE:
        return True
    name = op_name(node)
    return name in known_operations() or name in having(Trait.FACTORY) or name == "size"


def remove_dead(graph: fx.Graph) -> int:
    """Erase nodes that nothing reads and that have no effect; returns how many."""
    removed = 0
    for node in reversed(list(graph.nodes)):
        if not node.users and is_removable(node):
            graph.erase_node(node)
            removed += 1
    return removed


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of a Dynamo graph that AOTAutograd still recognises as one."""
    copied = fx.Graph(graph.owning_module)
    mapping: dict[fx.Node, fx.Node] = {}
    result = copied.graph_copy(graph, mapping)
    copied.output(result).meta = dict(graph.output_node().meta)
    keep_dynamo(graph, copied, mapping)
    return copied
