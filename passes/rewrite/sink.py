"""Scatters sink: past whatever works row by row, to where all rows are read in full.

``op(scatter(h, rows, x))`` is ``scatter(op(h), rows, op(x))``. Behind skipped operators a norm so reads the stream as
it was before them, and only its result has rows replaced: the stream is never copied, and what is the same in several
layers is computed once. A selection or a scatter of the same rows on the way is undone, as in `cancel`: 16-bit models
that keep their stream in 32 bits for a sum have casts between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from opskip_compile.passes.graph.origin import Origin, captured_name, captured_place, set_origin
from opskip_compile.passes.ops import call_of, tensor
from opskip_compile.passes.refusal import Refusal
from opskip_compile.passes.rewrite.pushdown import Pushdown, of_rows
from opskip_compile.passes.rewrite.selection import RowSet, copy_origin, is_scatter, is_selection


@dataclass(frozen=True)
class _Reach:
    """How far a scatter sinks.

    Attributes:
        dims: of the scatter and of each node behind it, in order, the dimension that holds the rows.
        end: the one value that is read in full; None if there is none.
    """

    dims: dict[fx.Node, int]
    end: fx.Node | None


def sink(graph: fx.Graph, proof: Pushdown) -> int:
    """Let every scatter sink that leaves nothing behind; returns how many did.

    Args:
        graph: after `cancel`.
        proof: of this graph; says what works row by row.
    """
    count = 0
    by_rows = {rows.rows: rows for rows in proof.sets.values()}
    for scatter in [node for node in graph.nodes if is_scatter(node) and node.users]:
        rows = by_rows.get(scatter.args[1])
        reach = None if rows is None else _reach(scatter, rows, proof)
        if rows is not None and reach is not None:
            _build(graph, scatter, reach, rows)
            count += 1
    return count


def _reach(scatter: fx.Node, rows: RowSet, proof: Pushdown) -> _Reach | None:
    """How far a scatter sinks, or None if the scatter itself is read in full, or more than one value is."""
    if scatter in proof.mutated or scatter.args[0] in proof.mutated:
        return None
    dims, place = {scatter: 1}, proof.order
    ahead = set(scatter.users)
    while ahead:
        node = min(ahead, key=place.__getitem__)
        ahead.remove(node)
        dim = _dim(node, dims, rows, proof)
        if dim is not None:
            dims[node] = dim
            ahead |= set(node.users)
    ends = [node for node in dims if not all(user in dims or _undoes(user, node, dims) for user in node.users)]
    if scatter in ends or len(ends) > 1 or not all(_takes_rows(end, dims[end], proof) for end in ends):
        return None
    return _Reach(dims, ends[0] if ends else None)


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


def _takes_rows(node: fx.Node, dim: int, proof: Pushdown) -> bool:
    """True for ``(batch, sequence, width)``, or one element of it that is written flat."""
    rank = tensor(node).dim()  # type: ignore[union-attr]
    return (rank, dim) == (3, 1) or ((rank, dim) == (2, 0) and proof.one_element)


def _build(graph: fx.Graph, scatter: fx.Node, reach: _Reach, rows: RowSet) -> None:
    all_rows: dict[fx.Node, Any] = {scatter: scatter.args[0]}
    kept: dict[fx.Node, Any] = {scatter: scatter.args[2]}
    for node, dim in list(reach.dims.items())[1:]:
        place, name = captured_place(node), captured_name(node)
        with graph.inserting_before(node):
            all_rows[node] = _copy(node, node.target, (node.args, node.kwargs), all_rows, Origin(place, name))
            target, given = of_rows(node, dim, rows)
            kept[node] = _copy(node, target, given, kept, Origin(place, name, dim, rows.name, twin=True))
        all_rows[node].meta["example_value"] = node.meta["example_value"]
    for node in reach.dims:
        for user in list(node.users):
            if user not in reach.dims and _undoes(user, node, reach.dims):
                if is_selection(user):
                    user.replace_all_uses_with(kept[node])
                    graph.erase_node(user)
                else:
                    user.update_arg(0, all_rows[node])
    if reach.end is not None:
        whole = _scatter(reach.end, all_rows[reach.end], kept[reach.end], rows, flat=not reach.dims[reach.end])
        reach.end.replace_all_uses_with(whole, lambda user: user not in reach.dims)
    for node in reversed(reach.dims):
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


def _scatter(node: fx.Node, everything: fx.Node, update: fx.Node, rows: RowSet, *, flat: bool) -> fx.Node:
    """The kept rows put over those of ``everything``, in place of ``node``."""
    graph, inserted = node.graph, list[fx.Node]()

    def call(target: Any, *args: Any) -> fx.Node:
        inserted.append(graph.create_node("call_function", target, args))
        set_origin(inserted[-1], Origin(captured_place(node), captured_name(node)))
        return inserted[-1]

    with graph.inserting_before(node):
        if flat:
            everything, update = call(torch.unsqueeze, everything, 0), call(torch.unsqueeze, update, 0)
        whole = call(rows.scatter, everything, rows.rows, update)
        if flat:
            whole = call(torch.squeeze, whole, 0)
    whole.meta["example_value"] = node.meta["example_value"]
    copy_origin(inserted, node)
    return whole
