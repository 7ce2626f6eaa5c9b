"""Write flex_attention as an operation of ours that kept rows can be taken of, where it does nothing but mask."""

from __future__ import annotations

from torch import fx

from opskip_compile._compat import BlockMask, same_size
from opskip_compile.passes.flex import attend_by_flex
from opskip_compile.passes.normalize.packages import instead, is_result
from opskip_compile.passes.ops import Call, call_of, op_name, tensor

_OPERANDS = ("query", "key", "value")


def lift_flex(gm: fx.GraphModule, graph: fx.Graph) -> int:
    """Replace every flex_attention whose result alone is read; returns how many.

    Args:
        gm: has the graphs of score and mask functions.
        graph: is changed.
    """
    lifted = 0
    for node in list(graph.nodes):
        call = call_of(node) if op_name(node) == "flex_attention" else None
        parts = [user for user in node.users if user.users] if call is not None else []
        if call is None or any(not is_result(part) for part in parts) or not _only_masks(gm, call):
            continue
        mask = _graph(gm, BlockMask.of(call["block_mask"]).function)
        if mask is None:
            continue
        names = ("score_mod", "block_mask", "scale", "kernel_options", "score_buffers", "mask_buffers")
        head = list(mask.find_nodes(op="placeholder"))[1]
        operands = (*(call.operand(name) for name in _OPERANDS), *(call[name] for name in names))
        instead(parts, attend_by_flex, (*operands, bool(head.users), None))
        lifted += 1
    return lifted


def _graph(gm: fx.GraphModule, node: object) -> fx.Graph | None:
    """The graph of a function that an operator is given."""
    inner = getattr(gm, str(node.target), None) if isinstance(node, fx.Node) and node.op == "get_attr" else None
    return inner.graph if isinstance(inner, fx.GraphModule) else None


def _only_masks(gm: fx.GraphModule, call: Call) -> bool:
    """True if each score stays what it is, and every element of the batch has keys of its own."""
    scores = _graph(gm, call["score_mod"])
    sizes = [tensor(call[name]) for name in _OPERANDS]
    if scores is None or any(x is None or x.dim() != 4 for x in sizes):
        return False
    first = next(iter(scores.nodes))
    own = all(x is not None and sizes[0] is not None and same_size(x.shape[0], sizes[0].shape[0]) for x in sizes)
    return own and scores.output_node().args[0] in (first, (first,), [first])
