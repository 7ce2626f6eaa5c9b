"""Views: follow the row dimension through reshapes, permutations, slices and concatenations."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops.lookups import table_lookup
from opskip_compile.passes.ops.nodes import op_name, tensor
from opskip_compile.passes.ops.registry import Decline, Dims, argument, name_of, operand, rule, shape

_Size = int | torch.SymInt
_CUTS = ("chunk", "split", "unbind", "tensor_split")


def _product(sizes: Sequence[_Size]) -> _Size:
    result: _Size = 1
    for size in sizes:
        result = result * size
    return result


def _sizes(node: fx.Node, first: int = 1) -> tuple[list[Any], bool]:
    """The size arguments and whether they came as one sequence."""
    given = node.args[first] if len(node.args) > first else None
    if isinstance(given, list | tuple):
        return list(given), True
    whole = given.meta.get("example_value") if isinstance(given, fx.Node) else None
    if isinstance(whole, tuple):  # another tensor's shape, as one value
        return [(given, i) for i in range(len(whole))], True
    for name in ("shape", "size"):
        if name in node.kwargs:
            return list(node.kwargs[name]), True  # type: ignore[arg-type]
    return list(node.args[first:]), False


def _with_sizes(node: fx.Node, sizes: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kwargs = {k: v for k, v in node.kwargs.items() if k not in ("input", "shape", "size")}
    return (operand(node), tuple(sizes)), kwargs


def resize_view(node: fx.Node, dim: int, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same view with ``n`` in the row dimension.

    A -1 elsewhere is written out where its size is fixed: Inductor 2.13 works out a wrong one next to a size that is
    only known when the graph runs.
    """
    sizes, _ = _sizes(node)
    known = shape(node)
    sizes = [
        known[i] if isinstance(s, int) and s == -1 and isinstance(known[i], int) else s for i, s in enumerate(sizes)
    ]
    if sizes.count(-1) != 1 or sizes[dim] != -1:
        sizes[dim] = n
    return _with_sizes(node, [_one_size(size) for size in sizes])


def _one_size(size: Any) -> Any:
    """A size as an argument; one that is a part of a shape is taken out of it."""
    return size[0].graph.call_function(operator.getitem, size) if isinstance(size, tuple) else size


@rule("view", "reshape", resize=resize_view)
def view(node: fx.Node, dim: int) -> Dims | Decline:
    """A view keeps a dimension if the sizes before it multiply to the same number and it has the same size."""
    x = operand(node)
    sizes, _ = _sizes(node)
    if len(sizes) != len(shape(node)) or any(isinstance(s, torch.dtype) for s in sizes):
        return Decline("it reinterprets the data type")
    before = _product(shape(node)[:dim])
    for own in range(len(shape(x))):
        if same_size(_product(shape(x)[:own]), before) and same_size(shape(x)[own], shape(node)[dim]):
            return {x: own}
    return Decline("the view splits or merges the rows")


@rule("flatten", "unflatten")
def flatten(node: fx.Node, dim: int) -> Dims | Decline:
    """Merging or splitting dimensions on one side of the rows."""
    x = operand(node)
    if op_name(node) == "unflatten":
        split = argument(node, 1, "dim") % len(shape(x))
        extra = len(shape(node)) - len(shape(x))
        if split <= dim <= split + extra:
            return Decline("the rows are split")
        return {x: dim if dim < split else dim - extra}
    start = argument(node, 1, "start_dim", 0) % len(shape(x))
    merged = len(shape(x)) - len(shape(node))
    if dim == start and merged:
        return Decline("the rows are merged with another dimension")
    return {x: dim if dim < start else dim + merged}


@rule("transpose", "swapaxes", "t", "mT")
def transpose(node: fx.Node, dim: int) -> Dims | Decline:
    """Two dimensions change places."""
    x = operand(node)
    rank = len(shape(x))
    a, b = rank - 2, rank - 1
    if op_name(node) not in ("t", "mT"):
        a = argument(node, 1, "dim0", node.kwargs.get("axis0")) % rank
        b = argument(node, 2, "dim1", node.kwargs.get("axis1")) % rank
    return {x: {a: b, b: a}.get(dim, dim)}


@rule("permute")
def permute(node: fx.Node, dim: int) -> Dims | Decline:
    """Any order of dimensions."""
    x = operand(node)
    order: Any = node.kwargs.get("dims")
    if order is None:
        order = node.args[1] if isinstance(node.args[1], list | tuple) else node.args[1:]
    return {x: order[dim] % len(shape(x))}


@rule("unsqueeze")
def unsqueeze(node: fx.Node, dim: int) -> Dims | Decline:
    """One dimension of size 1 more."""
    x = operand(node)
    new = argument(node, 1, "dim") % len(shape(node))
    if dim == new:
        return Decline("the rows are the new dimension")
    return {x: dim - (dim > new)}


@rule("squeeze")
def squeeze(node: fx.Node, dim: int) -> Dims | Decline:
    """One named dimension of size 1 less."""
    x = operand(node)
    gone = argument(node, 1, "dim")
    if not isinstance(gone, int) or len(node.args) > 2:
        return Decline("it does not name one dimension")
    if len(shape(x)) == len(shape(node)):
        # One kept row would make it a dimension of size 1.
        return Decline("it squeezes the rows") if gone % len(shape(x)) == dim else {x: dim}
    return {x: dim + (dim >= gone % len(shape(x)))}


def resize_expand(node: fx.Node, dim: int, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same expansion with ``n`` rows."""
    sizes, _ = _sizes(node)
    sizes[dim] = n
    return _with_sizes(node, [_one_size(size) for size in sizes])


@rule("expand", "broadcast_to", resize=resize_expand)
def expand(node: fx.Node, dim: int) -> Dims | Decline:
    """An expansion keeps the rows of its operand, or repeats one row for all."""
    x = operand(node)
    own = dim - (len(shape(node)) - len(shape(x)))
    if own < 0 or same_size(shape(x)[own], 1):
        return Decline("all rows are copies of one")
    return {x: own}


@rule("cat", "stack")
def cat(node: fx.Node, dim: int) -> Dims | Decline:
    """Joined along another dimension."""
    parts = argument(node, 0, "tensors")
    along = argument(node, 1, "dim", node.kwargs.get("axis", 0)) % len(shape(node))
    if along == dim:
        return Decline("it joins along the rows")
    new = op_name(node) == "stack"
    dims: dict[fx.Node, int] = {}
    for part in parts:
        if not new and len(shape(part)) != len(shape(node)):
            return Decline("an operand has another rank")
        dims[part] = dim - (new and dim > along)
    return dims


@rule(*_CUTS)
def split(node: fx.Node, dim: int) -> Dims | Decline:
    """Cut along another dimension; `getitem` asks in the numbering of one part."""
    x = operand(node)
    default = 0
    position = 1 if op_name(node) == "unbind" else 2
    along = argument(node, position, "dim", default) % len(shape(x))
    if op_name(node) == "unbind":
        return {x: dim + (dim >= along)}
    if along == dim:
        return Decline("it cuts along the rows")
    return {x: dim}


@rule("getitem")
def getitem(node: fx.Node, dim: int) -> Dims | Decline:
    """One part of a split, or slices, integers, None and Ellipsis that leave the rows whole."""
    x, index = operand(node), node.args[1]
    if tensor(x) is None:
        # x is a tuple of parts; the pushdown pass takes the selection through the operation that made it.
        return (
            {x: dim}
            if isinstance(index, int) and op_name(x) in (*_CUTS, "topk", "sort", "max", "min")
            else Decline(f"it takes a part of {name_of(x)}, which has no rule")
        )
    if isinstance(index, fx.Node) and tensor(index) is not None:
        return table_lookup(node, dim)
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(i, bool) or not (i is None or i is Ellipsis or isinstance(i, int | slice)) for i in items):
        return Decline("it indexes with a tensor or a computed number")
    if Ellipsis in items:
        at = items.index(Ellipsis)
        missing = len(shape(x)) - sum(item is not None and item is not Ellipsis for item in items)
        items[at : at + 1] = [slice(None)] * missing
    source = out = 0
    for item in items:
        if item is None:
            if out == dim:
                return Decline("the rows are the new dimension")
            out += 1
            continue
        if isinstance(item, slice):
            if out == dim:
                return {x: source} if item == slice(None) else Decline("it slices the rows")
            out += 1
        source += 1
    return {x: source + dim - out}


@rule("slice")
def slice_(node: fx.Node, dim: int) -> Dims | Decline:
    """``aten.slice`` along another dimension, as exported programs spell an index."""
    x = operand(node)
    along = argument(node, 1, "dim", 0)
    if not isinstance(along, int):
        return Decline("the dimension it works along is not one number")
    return Decline("it slices the rows") if along % len(shape(x)) == dim else {x: dim}
