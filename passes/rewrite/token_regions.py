"""Regions that flatten batch and sequence: proved token by token, and built again for the kept rows.

The rules of pushdown follow one dimension. A mixture of experts leaves that world: it flattens ``(batch, sequence)``
into tokens, copies each token once for each of its k experts, sorts the copies by expert, multiplies group by group,
and puts everything back. Row by row it still is, and that can be proved by asking of every operation one question
backwards: in which order do the rows of each operand have to be?

    rows    (batch, sequence, ...)       where the region begins: these get the selection
    tokens  (batch * sequence * k, ...)  k rows for each token, next to each other
    copies  (c * batch * sequence, ...)  all tokens, c times over; or (c, batch * sequence, ...), by a view
    sorted  the same in the order of one ascending `sort`, which is undone later

An operation without an answer ends the proof, and everything stays in full for that reason. Nothing here knows a model
or a module: the permutation of a sort and its inverse, and a product whose groups are counted from the values that
sorted its rows, are all that is added to the rules of pushdown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops import (
    Trait,
    attention_kernels,
    call_of,
    having,
    name_of,
    op_name,
    operand,
    rows_of,
    shape,
    tensor,
)
from opskip_compile.passes.ops.operation import Call
from opskip_compile.passes.refusal import Refusal, Refused, Why

At = Callable[[Refusal, fx.Node], Refusal]


@dataclass(frozen=True)
class Order:
    """The order of the rows of a value along one dimension.

    Attributes:
        k: rows for each token, next to each other.
        sort: the sort they are in, if any.
        copies: how many times over all tokens stand there.
        dim: the dimension.
    """

    k: int = 1
    sort: fx.Node | None = None
    copies: int = 1
    dim: int = 0

    @property
    def is_plain(self) -> bool:
        """True for rows in the first dimension that are no copies of all tokens."""
        return self.copies == 1 and self.dim == 0


TOKENS = Order()


@dataclass
class FlatRegion:
    """A proved region.

    Attributes:
        orders: every node that is built again, with the order of its rows.
        rows: the values ``(batch, sequence, ...)`` where the region begins.
        around: nodes that belong to a sort (permutations, counts), built again with it.
    """

    batch: int | torch.SymInt
    sequence: int | torch.SymInt
    orders: dict[fx.Node, Order] = field(default_factory=dict)
    rows: dict[fx.Node, None] = field(default_factory=dict)
    around: dict[fx.Node, Order] = field(default_factory=dict)

    def holds(self, node: fx.Node, order: Order) -> bool:
        """True if the dimension of ``node`` that ``order`` names has as many rows as it says."""
        sizes = shape(node)
        rows = self.batch * self.sequence * order.k * order.copies
        return len(sizes) > order.dim and same_size(sizes[order.dim], rows)

    def nodes(self) -> frozenset[fx.Node]:
        """Everything that is built again."""
        return frozenset(self.orders) | frozenset(self.around)


def _unproved(node: fx.Node, reason: str, why: Why = Why.MIXES_ROWS) -> Refused:
    """Where and why the proof of a region ends."""
    return Refused(Refusal(why, reason), node)


def _source(node: fx.Node, name: str = "input") -> fx.Node:
    """An operand that the proof can't do without."""
    value = operand(node, name)
    if value is None:
        raise _unproved(node, f"its argument {name} is not a tensor of the graph", Why.ARGUMENTS)
    return value


def prove_flat(end: fx.Node, dim: int, stream: torch.Tensor, at: At) -> FlatRegion | Refusal | None:
    """Prove the region that ends in ``end``, whose dimension ``dim`` carries the rows; None if it is not of this kind.

    Args:
        end: the view back to ``(batch, sequence, ...)``, or, with a batch of one element, any value of tokens.
        dim: 1 for the former; 0 for the latter, or 1 for a view in which the tokens come second.
        stream: an example of the residual stream, ``(batch, sequence, width)``.
        at: gives a refusal its place.
    """
    region = FlatRegion(stream.shape[0], stream.shape[1])
    if tensor(end) is None:
        return None
    try:
        return region if _prove(region, end, dim) else None
    except Refused as refused:
        return at(refused.refusal, refused.node or end)


def _prove(region: FlatRegion, end: fx.Node, dim: int) -> bool:
    is_view = op_name(end) in having(Trait.RESHAPES)
    if dim == 1 and is_view and _leads_with_rows(region, end):
        if not region.holds(_source(end), TOKENS):
            return False
        region.orders[end] = TOKENS
        _demand(region, _source(end), TOKENS)
        return True
    if not (dim == 0 or (dim == 1 and is_view)) or not same_size(region.batch, 1):
        return False
    if not region.holds(end, Order(dim=dim)):
        return False
    _demand(region, end, Order(dim=dim))
    return True


def _leads_with_rows(region: FlatRegion, node: fx.Node) -> bool:
    sizes = shape(node)
    return len(sizes) > 1 and same_size(sizes[0], region.batch) and same_size(sizes[1], region.sequence)


def _demand(region: FlatRegion, node: fx.Node, order: Order) -> None:
    """Prove that row i of ``node``, in ``order``, depends on row i of its operands only, in their orders."""
    stack = [(node, order)]
    while stack:
        node, order = stack.pop()
        if node in region.orders:
            if region.orders[node] != order:
                raise _unproved(node, "its rows are read in two orders")
            continue
        if node.op not in ("call_function", "call_method"):
            raise _unproved(node, "an input of the graph is read token by token")
        if tensor(node) is not None and not region.holds(node, order):
            raise _unproved(node, f"its dimension {order.dim} does not count the tokens")
        region.orders[node] = order
        stack += _operands(region, node, order).items()


def _operands(region: FlatRegion, node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    call, name = call_of(node), op_name(node)
    if name in having(Trait.RESHAPES):
        return _through_view(region, node, order) if order.is_plain else _through_view_of_copies(region, node, order)
    if call is None:
        return _by_rule(node, order)
    if name == "repeat" and order.sort is None and order.dim == 0:
        return _through_copies(call, order)
    if not order.is_plain:
        return _by_rule(node, order)
    if name == "repeat_interleave" and order.sort is None and call["dim"] == 0:
        return _through_repeat(call, order)
    if order.sort is not None and _is_part(node, order.sort, 0):
        region.around[order.sort] = order
        return {_source(order.sort): Order(order.k)}
    if name == "getitem" and isinstance(call["index"], fx.Node):
        return _through_index(region, call, order)
    if name == "grouped_mm" and order.sort is not None:
        return _through_groups(region, call, order)
    return _by_rule(node, order)


def _by_rule(node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    if op_name(node) in attention_kernels():
        raise _unproved(node, f"no rule for {name_of(node)}", Why.NO_RULE)
    dims = rows_of(node, order.dim)
    if isinstance(dims, Refusal):
        raise _unproved(node, dims.reason, dims.why)
    if order.sort is not None and any(carried != 0 for carried in dims.values()):
        raise _unproved(node, "the tokens leave the first dimension")
    return {other: replace(order, dim=carried) for other, carried in dims.items()}


def _through_view(region: FlatRegion, node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    x, sizes = _source(node), shape(node)
    source_sizes = shape(x)
    if region.holds(x, order):
        return _by_rule(node, order)
    if order.sort is None:
        # Heads as tokens of their own, (batch, sequence, heads, ...) in one dimension, are left alone: Inductor 2.13
        # computes wrong numbers where such a dimension, known only when the graph runs, is split again.
        if _leads_with_rows(region, x) and order.k == 1:
            region.rows[x] = None
            return {}
        if len(sizes) > 1 and isinstance(sizes[1], int) and region.holds(x, Order(order.k * sizes[1])):
            return {x: Order(order.k * sizes[1])}
        parts = source_sizes[1] if len(source_sizes) > 1 else 0
        if isinstance(parts, int) and parts and order.k % parts == 0 and region.holds(x, Order(order.k // parts)):
            return {x: Order(order.k // parts)}
    raise _unproved(node, "the view splits or merges the tokens")


def _through_view_of_copies(region: FlatRegion, node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    """``(c, tokens, ...)`` and ``(c * tokens, ...)`` are the same numbers in the same order."""
    x, sizes = _source(node), shape(node)
    source_sizes, kept = shape(x), rows_of(node, order.dim)
    if not isinstance(kept, Refusal):
        return {x: replace(order, dim=kept[x])}
    if order.k == 1 and order.sort is None:
        if order.dim == 1 and order.copies == 1 and isinstance(sizes[0], int) and sizes[0] > 0:
            merged = Order(copies=sizes[0])
            if region.holds(x, merged):
                return {x: merged}
        split = Order(dim=1)
        if order.dim == 0 and same_size(source_sizes[0], order.copies) and region.holds(x, split):
            return {x: split}
    raise _unproved(node, "the view splits or merges the tokens")


def _through_copies(call: Call, order: Order) -> Mapping[fx.Node, Order]:
    """``x.repeat(c, ...)``: all rows, c times over."""
    x, times = call.operand(), call["repeats"]
    times = times if isinstance(times, list) else []
    numbers = [time for time in times if isinstance(time, int) and time > 0]
    if not numbers or not len(shape(x)) == len(numbers) == len(times) or order.copies % numbers[0]:
        raise _unproved(call.node, "it does not repeat all tokens a fixed number of times")
    return {x: replace(order, copies=order.copies // numbers[0])}


def _through_repeat(call: Call, order: Order) -> Mapping[fx.Node, Order]:
    times = call["repeats"]
    if not isinstance(times, int) or times < 1 or order.k % times:
        raise _unproved(call.node, "it does not repeat every token equally often")
    return {call.operand(): Order(order.k // times)}


def _through_index(region: FlatRegion, call: Call, order: Order) -> Mapping[fx.Node, Order]:
    """``x[index]``: the permutation of a sort, its inverse, or a lookup in a table that every row may read."""
    x, index = call.operand(), call.operand("index")
    if order.sort is not None:
        permutation, times = index, 1
        division = call_of(index) if op_name(index) == "floordiv" else None
        if division is not None and isinstance(division["other"], int):
            permutation, times = division.operand(), division["other"]
        if _is_part(permutation, order.sort, 1):
            if times < 1 or order.k % times:
                raise _unproved(index, "the permutation is divided by another number than that of rows for a token")
            region.around.update({index: order, permutation: order, order.sort: order})
            return {x: Order(order.k // times), _source(order.sort): Order(order.k)}
    else:
        sort = _inverted(region, index, order)
        if sort is not None:
            return {x: Order(order.k, sort), _source(sort): order}
    numbers = tensor(index)
    if numbers is None or numbers.dtype == torch.bool or not numbers.dim():
        raise _unproved(call.node, "it does not look up whole numbers for each row")
    return {index: order}


def _through_groups(region: FlatRegion, call: Call, order: Order) -> Mapping[fx.Node, Order]:
    """A product of sorted rows with one matrix for each group; the groups have to be those of the same sort."""
    x, offsets, matrices = call.operand(), call["offs"], tensor(call["mat2"])
    plain = call["bias"] is None and call["out_dtype"] is None
    if matrices is None or matrices.dim() != 3 or len(shape(x)) != 2 or not plain:
        raise _unproved(call.node, "it is not a plain product of rows with one matrix for each group")
    if not isinstance(offsets, fx.Node) or not _counts(region, offsets, order):
        raise _unproved(call.node, "its groups are not counted from the values that sorted its rows")
    assert order.sort is not None
    return {x: order, _source(order.sort): Order(order.k)}


def _is_part(node: fx.Node, sort: fx.Node, part: int) -> bool:
    """True if ``node`` is the values (0) or the permutation (1) of ``sort``."""
    call = call_of(node) if op_name(node) == "getitem" else None
    return call is not None and call["input"] is sort and call["index"] in (part,)


def _inverted(region: FlatRegion, index: fx.Node, order: Order) -> fx.Node | None:
    """The sort whose permutation ``index`` inverts: ``index_put(new, permutation, arange(rows))``."""
    call = call_of(index) if op_name(index) == "index_put" else None
    if call is None or call["accumulate"]:
        return None
    base, places, numbers = call["input"], call["indices"], call["values"]
    permutation = places[0] if isinstance(places, list | tuple) and len(places) == 1 else None
    if not isinstance(base, fx.Node) or not isinstance(numbers, fx.Node) or not isinstance(permutation, fx.Node):
        return None
    sort = operand(permutation) if op_name(permutation) == "getitem" else None
    if sort is None or not _is_part(permutation, sort, 1) or not _sorts_one_list(sort):
        return None
    if not _counts_from_zero(numbers) or op_name(base) not in ("empty_like", "zeros_like"):
        return None
    if operand(base) is not permutation or not all(region.holds(node, order) for node in (permutation, numbers)):
        return None
    region.around.update(dict.fromkeys((index, base, numbers, permutation, sort), order))
    return sort


def _counts_from_zero(numbers: fx.Node) -> bool:
    """True for ``arange(n)`` and nothing else."""
    call = call_of(numbers) if op_name(numbers) == "arange" else None
    return call is not None and "start" not in call.arguments and {*numbers.kwargs} <= {"end", "device", "dtype"}


def _sorts_one_list(sort: fx.Node) -> bool:
    call = call_of(sort) if op_name(sort) == "sort" else None
    return call is not None and call["descending"] is False and len(shape(call.operand())) == 1


def _counts(region: FlatRegion, offsets: fx.Node, order: Order) -> bool:
    """True if ``offsets`` are running counts of the sorted values 0, 1, ...: where each group ends.

    A row is then multiplied with the matrix of its own value, whatever the other rows are: ``histc`` with as many bins
    as there are numbers from 0 to its maximum counts whole numbers exactly, and indices of `topk` are not negative.
    """
    sums, node = _uncast(offsets)
    total = call_of(node) if op_name(node) == "cumsum" else None
    if total is None or total["dim"] not in (0, -1):
        return False
    casts, counted = _uncast(total.operand())
    histogram = call_of(counted) if op_name(counted) == "histc" else None
    if histogram is None or order.sort is None:
        return False
    bins = histogram["bins"]
    last, values = _uncast(histogram.operand())
    if not isinstance(bins, int) or histogram["min"] != 0 or histogram["max"] != bins - 1:
        return False
    if not _is_part(values, order.sort, 0) or not _is_index(_source(order.sort)):
        return False
    region.around.update(dict.fromkeys((*sums, node, *casts, counted, *last, values, order.sort), order))
    return True


def _uncast(node: fx.Node) -> tuple[list[fx.Node], fx.Node]:
    """The casts that end in ``node``, and what they cast."""
    casts = []
    while op_name(node) in having(Trait.CAST) | {"int", "long"} and (source := operand(node)) is not None:
        casts.append(node)
        node = source
    return casts, node


def _is_index(node: fx.Node) -> bool:
    """True for the indices of a `topk` or `argmax`, under views and casts: whole numbers from 0."""
    through = having(Trait.RESHAPES, Trait.CAST) | {"int", "long"}
    while op_name(node) in through and (source := operand(node)) is not None:
        node = source
    whole = operand(node) if op_name(node) == "getitem" else None
    return op_name(node) == "argmax" or (whole is not None and op_name(whole) == "topk" and _is_part(node, whole, 1))
