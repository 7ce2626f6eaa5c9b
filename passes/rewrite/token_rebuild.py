"""Build a proved region of flattened tokens once more, for the kept rows, and erase what nobody reads any more."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from opskip_compile.passes.graph.origin import Origin, captured_name, captured_place, set_origin
from opskip_compile.passes.ops import call_of, op_name, tensor
from opskip_compile.passes.ops.shapes import as_one_element, resize_view
from opskip_compile.passes.rewrite.selection import RowSet, copy_origin
from opskip_compile.passes.rewrite.token_regions import FlatRegion, Order


def build_flat(
    graph: fx.Graph, region: FlatRegion, end: fx.Node, dim: int, rows: RowSet, order: Mapping[fx.Node, int]
) -> fx.Node:
    """The same region on the kept rows; every operation stands where its original does. Returns the new ``end``."""
    last = rows.n
    counts: dict[int, fx.Node] = {}

    def place(node: fx.Node) -> fx.Node:
        return node if order[node] > order[rows.n] else last

    def count(k: int) -> fx.Node:
        nonlocal last
        if k not in counts:
            if k == 1 and rows.packed:
                counts[k] = rows.n
            elif k == 1:
                with graph.inserting_after(rows.rows):
                    counts[k] = graph.call_method("numel", (rows.rows,))
            else:
                one = count(1)
                with graph.inserting_after(one):
                    counts[k] = graph.call_function(operator.mul, (one, k))
        return counts[k]

    new: dict[fx.Node, fx.Node] = {}
    for value in sorted(region.rows, key=order.__getitem__):
        at = place(value)
        with graph.inserting_after(at):
            new[value] = graph.create_node(
                "call_function", rows.select, (value, rows.rows, 1), name=f"{value.name}_rows"
            )
            set_origin(new[value], Origin(captured_place(end), captured_name(value), 1, rows.name))
        last = new[value] if at is last else last
    for node in sorted(region.nodes(), key=order.__getitem__):
        at = place(node)
        with graph.inserting_before(at.next):
            args, kwargs = _arguments(node, region, end if dim == 1 else None, rows, count)
            new[node] = graph.create_node(
                node.op,
                "reshape" if node.target == "view" else node.target,
                map_arg(args, lambda n: new.get(n, n)),
                map_arg(kwargs, lambda n: new.get(n, n)),
                name=f"{node.name}_kept",
            )
        order_of_rows = region.orders.get(node) or region.around[node]
        counted = tensor(node) is not None and region.holds(node, order_of_rows)
        shrunk = dim if node is end else order_of_rows.dim if counted else None
        set_origin(new[node], Origin(captured_place(node), captured_name(node), shrunk, rows.name, twin=True))
        copy_origin([new[node]], node)
        last = new[node] if at is last else last
    return new[end]


def erase_flat(graph: fx.Graph, regions: Sequence[FlatRegion], order: Mapping[fx.Node, int]) -> None:
    """Erase the originals that nobody reads any more."""
    for node in sorted({n for region in regions for n in region.nodes()}, key=order.__getitem__, reverse=True):
        if not node.users:
            graph.erase_node(node)


def _arguments(
    node: fx.Node, region: FlatRegion, end: fx.Node | None, rows: RowSet, count: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``node`` with the number of kept rows wherever they spell sizes."""
    call = call_of(node)
    if node is end and call is not None:
        if call.operation.name == "flatten":
            return node.args, dict(node.kwargs)
        args, kwargs = resize_view(call, 1, rows.n)
        return (as_one_element(resize_view, args) if rows.packed else args), kwargs
    around: Order | None = region.around.get(node)
    if op_name(node) == "arange" and around is not None:
        return (count(around.k),), {name: value for name, value in node.kwargs.items() if name != "end"}
    if node in region.orders and call is not None and call.operation.resize is not None:
        rows_of = region.orders[node]
        return call.operation.resize(call, rows_of.dim, count(rows_of.k * rows_of.copies))
    return node.args, dict(node.kwargs)
