"""Choosing and looking up: row by row as long as neither the choice nor the index runs along the rows."""

from __future__ import annotations

from typing import Any

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops.nodes import CASTS, op_name, tensor
from opskip_compile.passes.ops.registry import Decline, Dims, argument, broadcast, operand, rule, shape


def _is_parameter(table: object) -> bool:
    """True for an input of the graph under casts and transpositions: a table that no row has a part in."""
    while isinstance(table, fx.Node) and op_name(table) in CASTS | {"transpose", "t", "mT"}:
        table = table.args[0]
    return isinstance(table, fx.Node) and table.op in ("placeholder", "get_attr")


def table_lookup(node: fx.Node, dim: int) -> Dims | Decline:
    """``table[ids]``: every number looks up its own entry, wherever in the table that is."""
    ids = node.args[1]
    assert isinstance(ids, fx.Node)
    value = tensor(ids)
    if value is None or value.is_floating_point() or str(value.dtype) == "torch.bool" or ids is node.args[0]:
        return Decline("it indexes with a tensor or a computed number")
    if not _is_parameter(node.args[0]):
        return Decline("it indexes a computed value with a tensor")
    if dim >= value.dim():
        return Decline("the rows are entries of the table")
    return {ids: dim}


@rule("topk", "sort", "argsort", "argmax")
def choice(node: fx.Node, dim: int) -> Dims | Decline:
    """The largest entries of each row, or their order; `getitem` takes the values and the indices apart."""
    x = operand(node)
    position = 2 if op_name(node) == "topk" else 1
    along: Any = argument(node, position, "dim", None if op_name(node) == "argmax" else -1)
    if not isinstance(along, int):
        return Decline("the dimension it works along is not one number")
    along %= len(shape(x))
    if op_name(node) == "argmax" and not argument(node, 2, "keepdim", False):
        return {x: dim + (dim >= along)}
    return Decline("it works along the rows") if along == dim else {x: dim}


@rule("gather", "scatter")
def gather(node: fx.Node, dim: int) -> Dims | Decline:
    """``gather(x, dim, index)``, ``scatter(x, dim, index, source)``: along another dimension."""
    x, along = operand(node), argument(node, 1, "dim")
    if not isinstance(along, int) or along % len(shape(x)) == dim:
        return Decline("it works along the rows")
    dims: dict[fx.Node, int] = {}
    for other in (x, argument(node, 2, "index"), argument(node, 3, "src", node.kwargs.get("value"))):
        value = tensor(other)
        if isinstance(other, fx.Node) and value is not None and value.dim():
            if not same_size(value.shape[dim], shape(node)[dim]):
                return Decline("an operand has fewer rows")
            dims[other] = dim
    return dims


@rule("one_hot")
def one_hot(node: fx.Node, dim: int) -> Dims | Decline:
    """One dimension more, of a given size."""
    classes = argument(node, 1, "num_classes", -1)
    if dim == len(shape(node)) - 1:
        return Decline("the rows are the classes")
    return {operand(node): dim} if classes != -1 else Decline("the number of classes depends on all rows")


@rule("repeat_interleave")
def repeat_interleave(node: fx.Node, dim: int) -> Dims | Decline:
    """Repeated along another dimension."""
    x, along = operand(node), argument(node, 2, "dim")
    if not isinstance(along, int) or along % len(shape(x)) == dim:
        return Decline("it repeats the rows")
    return {x: dim} if isinstance(argument(node, 1, "repeats"), int) else Decline("it repeats unevenly")


@rule("zeros_like", "ones_like", "full_like")
def like(node: fx.Node, dim: int) -> Dims | Decline:
    """One number for every element."""
    return broadcast(node, dim, [operand(node)], len(shape(node)))


@rule("view_as_complex", "view_as_real")
def complex_view(node: fx.Node, dim: int) -> Dims | Decline:
    """The last dimension as pairs of real and imaginary part."""
    x = operand(node)
    if dim >= min(len(shape(x)), len(shape(node))):
        return Decline("the rows are the two parts")
    return Decline("no operand carries the rows") if same_size(shape(x)[dim], 1) else {x: dim}
