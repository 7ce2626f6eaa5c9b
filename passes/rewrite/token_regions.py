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

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops import RULES, Decline
from opskip_compile.passes.ops.nodes import CASTS, op_name, tensor
from opskip_compile.passes.ops.registry import argument, name_of, operand, shape

_VIEWS = ("view", "reshape", "flatten")
_GROUPED = ("grouped_mm", "_grouped_mm", "grouped_mm_fallback")


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


@dataclass(frozen=True)
class Stopped:
    """Where and why the proof of a region ended."""

    node: fx.Node
    reason: str


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


class _NotProved(Exception):
    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(reason)
        self.stopped = Stopped(node, reason)


def prove_flat(end: fx.Node, dim: int, stream: torch.Tensor) -> FlatRegion | Stopped | None:
    """Prove the region that ends in ``end``, whose dimension ``dim`` carries the rows; None if it is not of this kind.

    Args:
        end: the view back to ``(batch, sequence, ...)``, or, with a batch of one element, any value of tokens.
        dim: 1 for the former; 0 for the latter, or 1 for a view in which the tokens come second.
        stream: an example of the residual stream, ``(batch, sequence, width)``.
    """
    region = FlatRegion(stream.shape[0], stream.shape[1])
    if tensor(end) is None:
        return None
    try:
        is_view = op_name(end) in _VIEWS
        if dim == 1 and is_view and _leads_with_rows(region, end):
            if not region.holds(operand(end), TOKENS):
                return None
            region.orders[end] = TOKENS
            _demand(region, operand(end), TOKENS)
        elif not (dim == 0 or (dim == 1 and is_view)) or not same_size(region.batch, 1):
            return None
        elif region.holds(end, Order(dim=dim)):
            _demand(region, end, Order(dim=dim))
        else:
            return None
    except _NotProved as ended:
        return ended.stopped
    return region


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
                raise _NotProved(node, "its rows are read in two orders")
            continue
        if node.op not in ("call_function", "call_method"):
            raise _NotProved(node, "an input of the graph is read token by token")
        if tensor(node) is not None and not region.holds(node, order):
            raise _NotProved(node, f"its dimension {order.dim} does not count the tokens")
        region.orders[node] = order
        stack += _operands(region, node, order).items()


def _operands(region: FlatRegion, node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    name = name_of(node)
    if name in _VIEWS:
        return _through_view(region, node, order) if order.is_plain else _through_view_of_copies(region, node, order)
    if name == "repeat" and order.sort is None and order.dim == 0:
        return _through_copies(node, order)
    if not order.is_plain:
        return _by_rule(node, order)
    if name == "repeat_interleave" and order.sort is None and argument(node, 2, "dim") == 0:
        return _through_repeat(region, node, order)
    if order.sort is not None and _is_part(node, order.sort, 0):
        region.around[order.sort] = order
        return {operand(order.sort): Order(order.k)}
    if name == "getitem" and isinstance(node.args[1], fx.Node):
        return _through_index(region, node, node.args[1], order)
    if name in _GROUPED and order.sort is not None:
        return _through_groups(region, node, order)
    return _by_rule(node, order)


def _by_rule(node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    rule = RULES.get(name_of(node))
    if rule is None or name_of(node) == "scaled_dot_product_attention":
        raise _NotProved(node, f"no rule for {name_of(node)}")
    dims = rule.ask(node, order.dim)
    if isinstance(dims, Decline):
        raise _NotProved(node, dims.reason)
    if order.sort is not None and any(own != 0 for own in dims.values()):
        raise _NotProved(node, "the tokens leave the first dimension")
    return {other: replace(order, dim=own) for other, own in dims.items()}


def _through_view(region: FlatRegion, node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    x, sizes, given = operand(node), shape(node), shape(operand(node))
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
        parts = given[1] if len(given) > 1 else 0
        if isinstance(parts, int) and parts and order.k % parts == 0 and region.holds(x, Order(order.k // parts)):
            return {x: Order(order.k // parts)}
    raise _NotProved(node, "the view splits or merges the tokens")


def _through_view_of_copies(region: FlatRegion, node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    """``(c, tokens, ...)`` and ``(c * tokens, ...)`` are the same numbers in the same order."""
    x, sizes, given = operand(node), shape(node), shape(operand(node))
    kept = RULES[name_of(node)].ask(node, order.dim)
    if not isinstance(kept, Decline):
        return {x: replace(order, dim=kept[x])}
    if order.k == 1 and order.sort is None:
        if order.dim == 1 and order.copies == 1 and isinstance(sizes[0], int) and sizes[0] > 0:
            merged = Order(copies=sizes[0])
            if region.holds(x, merged):
                return {x: merged}
        split = Order(dim=1)
        if order.dim == 0 and same_size(given[0], order.copies) and region.holds(x, split):
            return {x: split}
    raise _NotProved(node, "the view splits or merges the tokens")


def _through_copies(node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    """``x.repeat(c, ...)``: all rows, c times over."""
    x, given = operand(node), node.args[1:]
    times = list(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else list(given)
    numbers = [time for time in times if isinstance(time, int) and time > 0]
    if len(numbers) != len(shape(x)) or len(numbers) != len(times) or order.copies % numbers[0]:
        raise _NotProved(node, "it does not repeat all tokens a fixed number of times")
    return {x: replace(order, copies=order.copies // numbers[0])}


def _through_repeat(region: FlatRegion, node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    times = argument(node, 1, "repeats")
    if not isinstance(times, int) or times < 1 or order.k % times:
        raise _NotProved(node, "it does not repeat every token equally often")
    return {operand(node): Order(order.k // times)}


def _through_index(region: FlatRegion, node: fx.Node, index: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    """``x[index]``: the permutation of a sort, its inverse, or a lookup in a table that every row may read."""
    x = operand(node)
    if order.sort is not None:
        permutation, times = index, 1
        if op_name(index) == "floordiv" and isinstance(index.args[0], fx.Node) and isinstance(index.args[1], int):
            permutation, times = index.args[0], index.args[1]
        if _is_part(permutation, order.sort, 1):
            if times < 1 or order.k % times:
                raise _NotProved(index, "the permutation is divided by another number than that of rows for a token")
            region.around.update({index: order, permutation: order, order.sort: order})
            return {x: Order(order.k // times), operand(order.sort): Order(order.k)}
    else:
        sort = _inverted(region, index, order)
        if sort is not None:
            return {x: Order(order.k, sort), operand(sort): order}
    numbers = tensor(index)
    if numbers is None or numbers.dtype == torch.bool or not numbers.dim():
        raise _NotProved(node, "it does not look up whole numbers for each row")
    return {index: order}


def _through_groups(region: FlatRegion, node: fx.Node, order: Order) -> Mapping[fx.Node, Order]:
    """A product of sorted rows with one matrix for each group; the groups have to be those of the same sort."""
    x, offsets = operand(node), argument(node, 2, "offs")
    others = [*node.args[3:], *(value for name, value in node.kwargs.items() if name != "offs")]  # bias, out_dtype
    matrices = next((tensor(a) for a in node.args[1:2]), None)
    if matrices is None or matrices.dim() != 3 or len(shape(x)) != 2 or any(value is not None for value in others):
        raise _NotProved(node, "it is not a plain product of rows with one matrix for each group")
    if not isinstance(offsets, fx.Node) or not _counts(region, offsets, order):
        raise _NotProved(node, "its groups are not counted from the values that sorted its rows")
    assert order.sort is not None
    return {x: order, operand(order.sort): Order(order.k)}


def _is_part(node: fx.Node, sort: fx.Node, part: int) -> bool:
    """True if ``node`` is the values (0) or the permutation (1) of ``sort``."""
    return op_name(node) == "getitem" and node.args[0] is sort and bool(node.args[1] == part)


def _inverted(region: FlatRegion, index: fx.Node, order: Order) -> fx.Node | None:
    """The sort whose permutation ``index`` inverts: ``index_put(new, permutation, arange(rows))``."""
    if op_name(index) != "index_put" or len(index.args) != 3 or index.kwargs:
        return None
    base, places, numbers = index.args
    permutation = places[0] if isinstance(places, list | tuple) and len(places) == 1 else None
    if not isinstance(base, fx.Node) or not isinstance(numbers, fx.Node) or not isinstance(permutation, fx.Node):
        return None
    sort = permutation.args[0] if op_name(permutation) == "getitem" else None
    if not isinstance(sort, fx.Node) or not _is_part(permutation, sort, 1) or not _sorts_one_list(sort):
        return None
    counted = op_name(numbers) == "arange" and len(numbers.args) == 1 and {*numbers.kwargs} <= {"device", "dtype"}
    if not counted or op_name(base) not in ("empty_like", "zeros_like") or base.args[0] is not permutation:
        return None
    if not all(region.holds(node, order) for node in (permutation, numbers)):
        return None
    region.around.update(dict.fromkeys((index, base, numbers, permutation, sort), order))
    return sort


def _sorts_one_list(sort: fx.Node) -> bool:
    ids = sort.args[0] if sort.args else None
    ascending = {*sort.kwargs} <= {"dim", "stable"} and len(sort.args) <= 2
    return op_name(sort) == "sort" and ascending and isinstance(ids, fx.Node) and len(shape(ids)) == 1


def _counts(region: FlatRegion, offsets: fx.Node, order: Order) -> bool:
    """True if ``offsets`` are running counts of the sorted values 0, 1, ...: where each group ends.

    A row is then multiplied with the matrix of its own value, whatever the other rows are: ``histc`` with as many bins
    as there are numbers from 0 to its maximum counts whole numbers exactly, and indices of `topk` are not negative.
    """
    sums, node = _uncast(offsets)
    if op_name(node) != "cumsum" or argument(node, 1, "dim") not in (0, -1):
        return False
    casts, counted = _uncast(node.args[0])
    if op_name(counted) != "histc":
        return False
    bins, low, high = (argument(counted, i, key, 0) for i, key in ((1, "bins"), (2, "min"), (3, "max")))
    last, values = _uncast(counted.args[0])
    if not isinstance(bins, int) or low != 0 or high != bins - 1 or order.sort is None:
        return False
    if not _is_part(values, order.sort, 0) or not _is_index(operand(order.sort)):
        return False
    region.around.update(dict.fromkeys((*sums, node, *casts, counted, *last, values, order.sort), order))
    return True


def _uncast(node: object) -> tuple[list[fx.Node], fx.Node]:
    """The casts that end in ``node``, and what they cast."""
    assert isinstance(node, fx.Node)
    casts = []
    while op_name(node) in CASTS | {"int", "long"} and isinstance(node.args[0], fx.Node):
        casts.append(node)
        node = node.args[0]
    return casts, node


def _is_index(node: fx.Node) -> bool:
    """True for the indices of a `topk` or `argmax`, under views and casts: whole numbers from 0."""
    while op_name(node) in {*_VIEWS, *CASTS, "int", "long"} and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    whole = node.args[0] if op_name(node) == "getitem" and node.args[1] == 1 else None
    return op_name(node) == "argmax" or (isinstance(whole, fx.Node) and op_name(whole) == "topk")
