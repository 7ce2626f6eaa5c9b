"""Choosing, looking up and taking apart: row by row as long as neither the choice nor the index runs along the rows."""

from __future__ import annotations

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops.families import NOTHING, by_broadcasting, plain
from opskip_compile.passes.ops.operation import Call, Dims, Operation, Trait, declined, shape, tensor
from opskip_compile.passes.ops.table import declare, having, name_of, op_name
from opskip_compile.passes.refusal import Refusal, Why

BY_TENSOR = "it indexes with a tensor or a computed number"


def getitem(call: Call, dim: int) -> Dims | Refusal:
    """One part of several values, or slices, integers, None and Ellipsis that leave the rows whole."""
    x, index = call.operand(), call["index"]
    if tensor(x) is None:
        # x is a tuple of parts; the pushdown pass takes the selection through the operation that made it.
        if isinstance(index, int) and op_name(x) in having(Trait.PARTS):
            return {x: dim}
        return declined(f"it takes a part of {name_of(x)}, which has no rule", Why.NO_RULE)
    if isinstance(index, fx.Node) and tensor(index) is not None:
        return table_lookup(x, index, dim)
    items = list(index) if isinstance(index, tuple) else [index]  # a list is an index of its own
    if any(isinstance(i, bool) or not (i is None or i is Ellipsis or isinstance(i, int | slice)) for i in items):
        return declined(BY_TENSOR)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        missing = len(shape(x)) - sum(item is not None and item is not Ellipsis for item in items)
        items[at : at + 1] = [slice(None)] * missing
    source = out = 0
    for item in items:
        if item is None:
            if out == dim:
                return declined("the rows are the new dimension")
            out += 1
            continue
        if isinstance(item, slice):
            if out == dim:
                return {x: source} if item == slice(None) else declined("it slices the rows")
            out += 1
        source += 1
    return {x: source + dim - out}


def _is_parameter(table: object) -> bool:
    """True for an input of the graph under casts and transpositions: a table that no row has a part in."""
    through = having(Trait.CAST) | {"transpose", "t", "mT"}
    while isinstance(table, fx.Node) and op_name(table) in through:
        table = table.args[0]
    return isinstance(table, fx.Node) and table.op in ("placeholder", "get_attr")


def table_lookup(table: fx.Node, ids: fx.Node, dim: int) -> Dims | Refusal:
    """``table[ids]``: every number looks up its own entry, wherever in the table that is."""
    value = tensor(ids)
    if value is None or value.is_floating_point() or str(value.dtype) in ("torch.bool", "torch.uint8") or ids is table:
        return declined(BY_TENSOR)
    if not _is_parameter(table):
        return declined("it indexes a computed value with a tensor")
    return {ids: dim} if dim < value.dim() else declined("the rows are entries of the table")


def embedding(call: Call, dim: int) -> Dims | Refusal:
    """``embedding(ids, table)``: every position is looked up alone."""
    ids = call.operand()
    if call["weight"] is ids:
        return declined("its positions are the table")
    return {ids: dim} if dim < len(shape(ids)) else declined("the rows are embedding features")


def choice(call: Call, dim: int) -> Dims | Refusal:
    """The largest entries of each row, or their order; `getitem` takes the values and the indices apart."""
    return declined("it works along the rows") if call.dimension() == dim else {call.operand(): dim}


def argmax(call: Call, dim: int) -> Dims | Refusal:
    """The place of the largest entry along a dimension, which the result loses or keeps with size 1."""
    over = call.dimension()
    return choice(call, dim) if call["keepdim"] else {call.operand(): dim + (dim >= over)}


def gather(call: Call, dim: int) -> Dims | Refusal:
    """``gather(x, dim, index)``, ``scatter(x, dim, index, source)``: along another dimension."""
    if call.dimension() == dim:
        return declined("it works along the rows")
    dims: dict[fx.Node, int] = {}
    for operand in (call["input"], call["index"], call["src"]):
        value = tensor(operand)
        if isinstance(operand, fx.Node) and value is not None and value.dim():
            if not same_size(value.shape[dim], shape(call.node)[dim]):
                return declined("an operand has fewer rows")
            dims[operand] = dim
    return dims or NOTHING


def take_along_dim(call: Call, dim: int) -> Dims | Refusal:
    """A gather whose operands broadcast."""
    operands = call.tensors("input", "indices")
    if call["dim"] is None or any(len(shape(x)) != call.rank for x in operands):
        return declined("the dimension it works along is not one number", Why.ARGUMENTS)
    if call.dimension() == dim:
        return declined("it works along the rows")
    return by_broadcasting("input", "indices")(call, dim)


def index_select(call: Call, dim: int) -> Dims | Refusal:
    """Chosen entries of another dimension, the same for every row."""
    x = call.operand()
    if not len(shape(x)) or call.dimension() == dim:
        return declined("it chooses among the rows")
    return declined("its index is the operand") if call["index"] is x else {x: dim}


def one_hot(call: Call, dim: int) -> Dims | Refusal:
    """One dimension more, of a given size."""
    if dim == call.rank - 1:
        return declined("the rows are the classes")
    return {call.operand(): dim} if call["num_classes"] != -1 else declined("the number of classes depends on all rows")


def repeat_interleave(call: Call, dim: int) -> Dims | Refusal:
    """Repeated along another dimension."""
    x, over = call.operand(), call["dim"]
    if not isinstance(over, int) or over % len(shape(x)) == dim:
        return declined("it repeats the rows")
    return {x: dim} if isinstance(call["repeats"], int) else declined("it repeats unevenly")


def complex_view(call: Call, dim: int) -> Dims | Refusal:
    """The last dimension as pairs of real and imaginary part."""
    x = call.operand()
    if dim >= min(len(shape(x)), call.rank):
        return declined("the rows are the two parts")
    return NOTHING if same_size(shape(x)[dim], 1) else {x: dim}


_PARTS = (Trait.PARTS,)
_LIKE = "dtype=None, layout=None, device=None, pin_memory=False, requires_grad=False, memory_format=None"
_MADE = "dtype=None, layout=None, device=None, pin_memory=False, requires_grad=False"
_FACTORY = (Trait.FACTORY,)
_LIKE_ROWS, _LIKE_TRAITS = by_broadcasting("input"), (Trait.SHAPE_ONLY, Trait.FACTORY)
_ARANGE = f"end, *, {_MADE}", f"start, end, *, {_MADE}", f"start, end, step, *, {_MADE}"

declare(
    Operation("getitem", ("input, index",), rows=getitem, aliases=("input",)),
    # The rows of the table that are too long are shortened in place where a largest norm is given.
    Operation(
        "embedding",
        ("input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False",),
        spelled={"torch.embedding": "weight, input, padding_idx=-1, scale_grad_by_freq=False, sparse=False"},
        renamed={"indices": "input"},
        rows=embedding,
        writes=(("weight", "max_norm"),),
    ),
    plain("topk", "input, k, dim=-1, largest=True, sorted=True", rows=choice, traits=_PARTS),
    plain("kthvalue", "input, k, dim=-1, keepdim=False", rows=argmax, traits=_PARTS),
    plain("sort", "input, dim=-1, descending=False, stable=False", rows=choice, traits=_PARTS),
    plain("cummax", "input, dim", rows=choice, traits=_PARTS),
    plain("cummin", "input, dim", rows=choice, traits=_PARTS),
    Operation("argsort", ("input, dim=-1, descending=False, stable=False",), rows=choice),
    Operation("argmax", ("input, dim=None, keepdim=False",), rows=argmax),
    Operation("argmin", ("input, dim=None, keepdim=False",), rows=argmax),
    Operation("gather", ("input, dim, index, *, sparse_grad=False",), rows=gather),
    Operation("scatter", ("input, dim, index, src, *, reduce=None",), renamed={"value": "src"}, rows=gather),
    Operation("scatter_add", ("input, dim, index, src",), rows=gather),
    Operation("take_along_dim", ("input, indices, dim=None",), rows=take_along_dim),
    Operation("index_select", ("input, dim, index",), rows=index_select),
    Operation("one_hot", ("input, num_classes=-1",), rows=one_hot),
    Operation("repeat_interleave", ("input, repeats, dim=None, *, output_size=None",), rows=repeat_interleave),
    Operation("view_as_complex", rows=complex_view, aliases=("input",)),
    Operation("view_as_real", rows=complex_view, aliases=("input",)),
    # One number for every element.
    *(plain(name, f"input, *, {_LIKE}", rows=_LIKE_ROWS, traits=_LIKE_TRAITS) for name in ("zeros_like", "ones_like")),
    plain("full_like", f"input, fill_value, *, {_LIKE}", rows=_LIKE_ROWS, traits=(Trait.SHAPE_ONLY,)),
    # Without a rule: what they read, write and share is known.
    plain("empty_like", f"input, *, {_LIKE}", traits=(Trait.SHAPE_ONLY, Trait.FACTORY)),
    *(plain(name, f"input, *, {_LIKE}", traits=(Trait.SHAPE_ONLY,)) for name in ("rand_like", "randn_like")),
    *(
        plain(name, f"input, *size, {_MADE}", traits=(Trait.SHAPE_ONLY, Trait.FACTORY))
        for name in ("new_zeros", "new_ones", "new_empty")
    ),
    plain("new_full", f"input, size, fill_value, *, {_MADE}", traits=(Trait.SHAPE_ONLY, Trait.FACTORY)),
    *(plain(name, f"*size, {_MADE}", traits=_FACTORY) for name in ("ones", "zeros", "empty")),
    plain("full", f"size, fill_value, *, {_MADE}", traits=_FACTORY),
    plain("arange", *_ARANGE, traits=_FACTORY),
    *(plain(name, "input, dim=None", traits=(Trait.SHAPE_ONLY,)) for name in ("size", "stride", "shape")),
    *(plain(name, traits=(Trait.SHAPE_ONLY,)) for name in ("dim", "ndim", "numel", "dtype", "device")),
    plain("index_put", "input, indices, values, accumulate=False"),
    plain("masked_scatter", "input, mask, source"),
    plain("histc", "input, bins=100, min=0, max=0"),
    plain("bincount", "input, weights=None, minlength=0"),
    plain("tril", "input, diagonal=0"),
    plain("triu", "input, diagonal=0"),
    plain("nonzero", "input, *, as_tuple=False"),
    plain("masked_select", "input, mask"),
    *(plain(name) for name in ("interpolate", "group_norm", "conv2d", "conv3d", "bilinear")),
    plain("pad", "input, pad, mode='constant', value=None"),
    plain("setitem", "input, index, value", writes=("input",)),
    plain("delitem", "input, index", writes=("input",)),
)
