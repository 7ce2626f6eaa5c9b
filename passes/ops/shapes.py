"""Views, cuts and joins: follow the row dimension through reshapes, permutations, slices and concatenations."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops.families import plain, view
from opskip_compile.passes.ops.operation import Arguments, Call, Dims, Operation, Resize, Trait, declined, shape
from opskip_compile.passes.ops.table import declare
from opskip_compile.passes.refusal import Refusal

_Size = int | torch.SymInt
NEW_DIMENSION = declined("the rows are the new dimension")


def _product(sizes: Sequence[_Size]) -> _Size:
    result: _Size = 1
    for size in sizes:
        result = result * size
    return result


def sizes_of(call: Call) -> list[Any]:
    """The size arguments; a pair of a shape and a place for each where they came as another tensor's shape."""
    size = call["size"]
    if isinstance(size, fx.Node):
        whole = size.meta.get("example_value")
        return [(size, i) for i in range(len(whole))] if isinstance(whole, tuple) else [size]
    return list(size) if isinstance(size, list | tuple) else [size]


def _with_sizes(call: Call, sizes: list[Any]) -> Arguments:
    return (call.operand(), tuple(_one_size(size) for size in sizes)), {}


def _one_size(size: Any) -> Any:
    """A size as an argument; one that is a part of a shape is taken out of it."""
    return size[0].graph.call_function(operator.getitem, size) if isinstance(size, tuple) else size


def resize_view(call: Call, dim: int, n: fx.Node) -> Arguments:
    """The same view with ``n`` in the row dimension.

    A -1 elsewhere is written out where its size is fixed: Inductor 2.13 works out a wrong one next to a size that is
    only known when the graph runs.
    """
    known = shape(call.node)
    sizes = [
        known[i] if isinstance(s, int) and s == -1 and isinstance(known[i], int) else s
        for i, s in enumerate(sizes_of(call))
    ]
    if sizes.count(-1) != 1 or sizes[dim] != -1:
        sizes[dim] = n
    return _with_sizes(call, sizes)


def reshape(call: Call, dim: int) -> Dims | Refusal:
    """A view keeps a dimension if the sizes before it multiply to the same number and it has the same size."""
    x, sizes, result = call.operand(), sizes_of(call), shape(call.node)
    if len(sizes) != len(result) or any(isinstance(s, torch.dtype) for s in sizes):
        return declined("it reinterprets the data type")
    before = _product(result[:dim])
    for at in range(len(shape(x))):
        if same_size(_product(shape(x)[:at]), before) and same_size(shape(x)[at], result[dim]):
            return {x: at}
    return declined("the view splits or merges the rows")


def unflatten(call: Call, dim: int) -> Dims | Refusal:
    """Splitting a dimension on one side of the rows."""
    x = call.operand()
    split, extra = call.dimension(), call.rank - len(shape(x))
    if split <= dim <= split + extra:
        return declined("the rows are split")
    return {x: dim if dim < split else dim - extra}


def flatten(call: Call, dim: int) -> Dims | Refusal:
    """Merging dimensions on one side of the rows."""
    x = call.operand()
    start, merged = call.dimension("start_dim"), len(shape(x)) - call.rank
    if dim == start and merged:
        return declined("the rows are merged with another dimension")
    return {x: dim if dim < start else dim + merged}


def transpose(call: Call, dim: int) -> Dims | Refusal:
    """Two dimensions change places."""
    a, b = call.dimension("dim0"), call.dimension("dim1")
    return {call.operand(): {a: b, b: a}.get(dim, dim)}


def transpose_last(call: Call, dim: int) -> Dims | Refusal:
    """The last two dimensions change places; of a vector none."""
    x = call.operand()
    rank = len(shape(x))
    if rank < 2:
        return {x: dim}
    return {x: {rank - 2: rank - 1, rank - 1: rank - 2}.get(dim, dim)}


def permute(call: Call, dim: int) -> Dims | Refusal:
    """Any order of dimensions."""
    x, order = call.operand(), call["dims"]
    return {x: order[dim] % len(shape(x))}


def movedim(call: Call, dim: int) -> Dims | Refusal:
    """Some dimensions move to other places, the others keep their order."""
    x = call.operand()
    rank = len(shape(x))
    pairs = [call[name] for name in ("source", "destination")]
    source, destination = ([d % rank for d in ([p] if isinstance(p, int) else p)] for p in pairs)
    others = iter(d for d in range(rank) if d not in source)
    order = [source[destination.index(d)] if d in destination else next(others) for d in range(rank)]
    return {x: order[dim]}


def unsqueeze(call: Call, dim: int) -> Dims | Refusal:
    """One dimension of size 1 more."""
    new = call.dimension(rank=call.rank)
    return NEW_DIMENSION if dim == new else {call.operand(): dim - (dim > new)}


def squeeze(call: Call, dim: int) -> Dims | Refusal:
    """One named dimension of size 1 less."""
    x, dims = call.operand(), call["dim"]
    if not isinstance(dims, list) or len(dims) != 1 or not isinstance(dims[0], int) or not len(shape(x)):
        return declined("it does not name one dimension")
    gone = dims[0] % len(shape(x))
    if len(shape(x)) == call.rank:
        # One kept row would make it a dimension of size 1.
        return declined("it squeezes the rows") if gone == dim else {x: dim}
    return {x: dim + (dim >= gone)}


def resize_expand(call: Call, dim: int, n: fx.Node) -> Arguments:
    """The same expansion with ``n`` rows."""
    sizes = sizes_of(call)
    sizes[dim] = n
    return _with_sizes(call, sizes)


def as_one_element(resize: Resize, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments that ``resize`` made, with a batch of one element in front where they spell all sizes."""
    if resize not in (resize_view, resize_expand) or args[1][0] == -1:
        return args
    return args[0], (1, *args[1][1:])


def expand(call: Call, dim: int) -> Dims | Refusal:
    """An expansion keeps the rows of its operand, or repeats one row for all."""
    x = call.operand()
    at = dim - (call.rank - len(shape(x)))
    if at < 0 or same_size(shape(x)[at], 1):
        return declined("all rows are copies of one")
    return {x: at}


def cat(call: Call, dim: int) -> Dims | Refusal:
    """Joined along another dimension."""
    if call.dimension(rank=call.rank) == dim:
        return declined("it joins along the rows")
    if any(len(shape(part)) != call.rank for part in call["tensors"]):
        return declined("an operand has another rank")
    return dict.fromkeys(call["tensors"], dim)


def stack(call: Call, dim: int) -> Dims | Refusal:
    """Joined along a new dimension."""
    new = call.dimension(rank=call.rank)
    if new == dim:
        return declined("it joins along the rows")
    return dict.fromkeys(call["tensors"], dim - (dim > new))


def cut(call: Call, dim: int) -> Dims | Refusal:
    """Cut along another dimension; `getitem` asks in the numbering of one part."""
    return declined("it cuts along the rows") if call.dimension() == dim else {call.operand(): dim}


def unbind(call: Call, dim: int) -> Dims | Refusal:
    """Cut along another dimension, which the parts do not have."""
    return {call.operand(): dim + (dim >= call.dimension())}


def slice_(call: Call, dim: int) -> Dims | Refusal:
    """A slice along another dimension, as exported programs spell an index."""
    return declined("it slices the rows") if call.dimension() == dim else {call.operand(): dim}


def select(call: Call, dim: int) -> Dims | Refusal:
    """One entry of another dimension."""
    return {call.operand(): dim + (dim >= call.dimension())}


def flip(call: Call, dim: int) -> Dims | Refusal:
    """The other way round along other dimensions."""
    x, dims = call.operand(), call["dims"]
    return declined("it turns the rows round") if dim in [d % len(shape(x)) for d in dims] else {x: dim}


def roll(call: Call, dim: int) -> Dims | Refusal:
    """Moved along other dimensions."""
    x, dims = call.operand(), call["dims"]
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims or dim in [d % len(shape(x)) for d in dims]:
        return declined("it moves the rows")
    return {x: dim}


_RESHAPES = (Trait.RESHAPES,)
_CUT = (Trait.PARTS,)
declare(
    # x.view(torch.int32) and aten.view.dtype give other sizes
    view(
        "view",
        "input, *size",
        rows=reshape,
        resize=resize_view,
        synonyms=("_unsafe_view",),  # whose schema does not say that it shares memory
        renamed={"dtype": "size"},
        traits=_RESHAPES,
    ),
    view("reshape", "input, *size", rows=reshape, resize=resize_view, renamed={"shape": "size"}, traits=_RESHAPES),
    view("flatten", "input, start_dim=0, end_dim=-1", rows=flatten, traits=_RESHAPES),
    view("unflatten", "input, dim, sizes", rows=unflatten),
    view("transpose", "input, dim0, dim1", rows=transpose),
    view("swapaxes", "input, dim0, dim1", rows=transpose, synonyms=("swapdims",)),
    view("t", rows=transpose_last),
    view("mT", rows=transpose_last),
    view("adjoint", rows=transpose_last, synonyms=("mH",)),
    view("permute", "input, *dims", rows=permute),
    view("movedim", "input, source, destination", rows=movedim, synonyms=("moveaxis",)),
    view("unsqueeze", "input, dim", rows=unsqueeze),
    view("squeeze", "input, *dim", rows=squeeze),
    view("expand", "input, *size", rows=expand, resize=resize_expand, renamed={"shape": "size"}),
    view("broadcast_to", "input, *size", rows=expand, resize=resize_expand, renamed={"shape": "size"}),
    view("chunk", "input, chunks, dim=0", rows=cut, traits=_CUT),
    view(
        "split",
        "input, split_size, dim=0",
        rows=cut,
        synonyms=("split_with_sizes", "unsafe_split"),
        renamed={"split_sizes": "split_size", "split_size_or_sections": "split_size"},
        traits=_CUT,
    ),
    view(
        "tensor_split",
        "input, indices_or_sections, dim=0",
        rows=cut,
        renamed=dict.fromkeys(("indices", "sections", "tensor_indices_or_sections"), "indices_or_sections"),
        traits=_CUT,
    ),
    view("unbind", "input, dim=0", rows=unbind, traits=_CUT),
    view("slice", "input, dim=0, start=None, end=None, step=1", rows=slice_),
    view("narrow", "input, dim, start, length", rows=slice_),
    view("select", "input, dim, index", rows=select),
    Operation("cat", ("tensors, dim=0",), ("concat", "concatenate"), rows=cat),
    Operation("stack", ("tensors, dim=0",), rows=stack),
    Operation("flip", ("input, *dims",), rows=flip),
    Operation("roll", ("input, shifts, dims=()",), rows=roll),
    # Views without a rule.
    plain("expand_as", "input, other", aliases=("input",)),
    plain("view_as", "input, other", aliases=("input",)),
    plain("reshape_as", "input, other", aliases=("input",)),
    plain("ravel", aliases=("input",)),
    plain("identity", aliases=("input",)),
    plain("lift_fresh", aliases=("input",)),
    plain("T", aliases=("input",)),
    plain("H", aliases=("input",)),
    plain("data", aliases=("input",)),
    plain("diagonal", "input, offset=0, dim1=0, dim2=1", aliases=("input",)),
    plain("unfold", "input, dimension, size, step", aliases=("input",)),
    plain("repeat", "input, *repeats"),
    plain("tile", "input, *dims"),
)
