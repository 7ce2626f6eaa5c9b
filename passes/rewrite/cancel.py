"""Selections and scatters of the same rows that meet undo each other.

``select(scatter(h, rows, x), rows)`` is ``x``, and a scatter over a scatter of the same rows replaces it. Through a
run of skipped operators the kept rows so stay compact, and the full sequence is only written where all rows are read.

What works row by row may stand between them: ``op(scatter(h, rows, x))`` is ``op(h)`` with the rows of ``op(x)``.
Models that keep their stream in 16 bits, and add in 32, have casts there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from opskip_compile.passes.graph.origin import Origin, captured_name, captured_place, set_origin
from opskip_compile.passes.ops import call_of, mutated_nodes, tensor
from opskip_compile.passes.refusal import Refusal
from opskip_compile.passes.rewrite.pushdown import Pushdown, of_rows
from opskip_compile.passes.rewrite.selection import RowSet, copy_origin, is_scatter, is_selection


def cancel(graph: fx.Graph) -> int:
    """Apply both rules everywhere; returns how often. Sound because `kept_rows` names no row twice."""
    count = 0
    # A stream that the model writes to in place is not what the scatter made any more.
    mutated = mutated_nodes(graph)
    for node in list(graph.nodes):
        if not (is_selection(node) or is_scatter(node)):
            continue
        inner = node.args[0]
        if not (isinstance(inner, fx.Node) and is_scatter(inner) and inner.args[1] is node.args[1]):
            continue
        if inner in mutated or inner.args[0] in mutated:
            continue
        if is_selection(node):
            if node.args[2] != 1:
                continue
            node.replace_all_uses_with(inner.args[2])
            graph.erase_node(node)
        else:
            node.update_arg(0, inner.args[0])
        count += 1
    return count


def cancel_around(graph: fx.Graph, proof: Pushdown) -> int:
    """The same around what works row by row, where nothing between reads a scatter in full; returns how often.

    Args:
        graph: after `cancel`.
        proof: of this graph; says what works row by row.
    """
    count = 0
    by_rows: dict[Any, RowSet] = {rows.rows: rows for rows in proof.sets.values()}
    for scatter in [node for node in graph.nodes if is_scatter(node) and node.users]:
        rows = by_rows.get(scatter.args[1])
        dims = None if rows is None else _between(scatter, rows, proof)
        if rows is not None and dims is not None:
            _take_apart(graph, dims, rows)
            count += 1
    return count


def _between(scatter: fx.Node, rows: RowSet, proof: Pushdown) -> dict[fx.Node, int] | None:
    """A scatter and what stands between it and those that undo it, in order, with the dimension of the rows.

    None if anything else reads one of these.
    """
    if scatter in proof.mutated or scatter.args[0] in proof.mutated:
        return None
    dims, place = {scatter: 1}, proof.order
    ahead = set(scatter.users)
    while ahead:
        if not ahead <= place.keys():  # made since
            return None
        user = min(ahead, key=place.__getitem__)
        ahead.remove(user)
        if all(_undoes(user, node, dims) for node in user.all_input_nodes if node in dims):
            continue
        dim = _dim(user, dims, rows, proof)
        if dim is None:
            return None
        dims[user] = dim
        ahead |= set(user.users)
    return dims


def _dim(node: fx.Node, dims: Mapping[fx.Node, int], rows: RowSet, proof: Pushdown) -> int | None:
    """The dimension of the rows in the result of an operation that works row by row; None for all others.

    A matrix product is none: it would be computed for the kept rows twice.
    """
    call, value = call_of(node), tensor(node)
    if call is None or value is None or call.operation.product or is_scatter(node):
        return None
    carried = {operand: dims[operand] for operand in node.all_input_nodes if operand in dims}
    for dim in range(value.dim()):
        answer = proof.ask(node, dim, rows)
        if not isinstance(answer, Refusal) and answer == carried:
            return dim
    return None


def _undoes(user: fx.Node, node: fx.Node, dims: Mapping[fx.Node, int]) -> bool:
    """True for a selection or a scatter of the same rows."""
    scatter = next(iter(dims))
    if is_selection(user):
        return user.args[1:] == (scatter.args[1], dims[node])
    return (
        is_scatter(user) and dims[node] == 1 and user.args[:2] == (node, scatter.args[1]) and user.args[2] is not node
    )


def _take_apart(graph: fx.Graph, dims: Mapping[fx.Node, int], rows: RowSet) -> None:
    """Compute what stands between for the stream below the scatter, and for the kept rows."""
    scatter, *between = dims
    below: dict[fx.Node, Any] = {scatter: scatter.args[0]}
    kept: dict[fx.Node, Any] = {scatter: scatter.args[2]}
    for node in between:
        place, name = captured_place(node), captured_name(node)
        with graph.inserting_before(node):
            below[node] = _copy(node, node.target, (node.args, node.kwargs), below, Origin(place, name))
            target, given = of_rows(node, dims[node], rows)
            kept[node] = _copy(node, target, given, kept, Origin(place, name, dims[node], rows.name, twin=True))
        below[node].meta["example_value"] = node.meta["example_value"]
    for node in reversed([scatter, *between]):
        for user in list(node.users):
            if is_selection(user):
                user.replace_all_uses_with(kept[node])
                graph.erase_node(user)
            else:
                user.update_arg(0, below[node])
        graph.erase_node(node)


def _copy(
    node: fx.Node, target: Any, given: tuple[Any, Any], operands: Mapping[fx.Node, Any], origin: Origin
) -> fx.Node:
    """The operation of ``node`` on other operands."""
    args, kwargs = map_arg(given, lambda n: operands.get(n, n))
    new = node.graph.create_node(node.op, target, args, kwargs)
    set_origin(new, origin)
    copy_origin([new], node)
    return new
