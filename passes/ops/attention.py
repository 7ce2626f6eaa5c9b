"""Scaled dot product attention: the selection goes to the queries and to the rows of the mask."""

from __future__ import annotations

from typing import Any

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops.registry import Decline, Dims, argument, operand, rule, shape
from opskip_compile.passes.runtime import causal_mask


def explicit_causal(node: fx.Node, dim: int, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``is_causal`` aligns queries to the top left, which is wrong for selected ones: give the mask rows instead."""
    args, kwargs = node.args, dict(node.kwargs)
    if not argument(node, 5, "is_causal", False):
        return args, kwargs
    rows = n.args[0]  # n is rows.size(1)
    mask = node.graph.call_function(causal_mask, (rows, operand(node, 1, "key")))
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    kwargs = {**dict(zip(names[3:], args[3:], strict=False)), **kwargs, "attn_mask": mask, "is_causal": False}
    return args[:3], kwargs


@rule("scaled_dot_product_attention", resize=explicit_causal)
def sdpa(node: fx.Node, dim: int) -> Dims | Decline:
    """``sdpa(q, k, v, mask)``: a query row needs its row of q and of the mask, and all of k and v."""
    query, rank = operand(node, 0, "query"), len(shape(node))
    key, value = operand(node, 1, "key"), operand(node, 2, "value")
    mask = argument(node, 3, "attn_mask")
    if argument(node, 4, "dropout_p", 0.0) != 0.0:
        return Decline("attention dropout is active")
    if dim == rank - 1:
        return Decline("the rows are value features")
    if dim == rank - 2:
        if query in (key, value):
            return Decline("queries and keys are the same tensor")
        if argument(node, 5, "is_causal", False) and isinstance(mask, fx.Node):
            return Decline("both a mask and is_causal are given")
        if argument(node, 5, "is_causal", False) and rank != 4:
            return Decline("is_causal without a dimension of heads")
        dims = {query: dim}
    else:
        dims = {x: dim for x in (query, key, value) if not same_size(shape(x)[dim], 1)}
    if isinstance(mask, fx.Node):
        own = dim - (rank - len(shape(mask)))
        if own >= 0 and not same_size(shape(mask)[own], 1):
            dims[mask] = own
    return dims
