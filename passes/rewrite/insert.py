"""Write the definition of skipping into the graph: ``h' = scatter(h, rows, select(h) + select(f(h)))``.

This alone gives the oracle's result; it saves nothing yet, because ``f(h)`` is still computed for every row.
"""

from __future__ import annotations

import operator as op
from collections.abc import Sequence

import torch
from torch import fx

from opskip_compile.passes.analysis.locate import RowSource
from opskip_compile.passes.analysis.plan import Plan, Skip
from opskip_compile.passes.graph.origin import Origin, captured_name, set_origin
from opskip_compile.passes.ops import op_name, tensor
from opskip_compile.passes.rewrite.row_sets import RowSets
from opskip_compile.passes.rewrite.selection import RowSet, copy_origin


def insert_skips(graph: fx.Graph, plan: Plan, source: RowSource, groups: Sequence[str] = ()) -> dict[str, RowSet]:
    """Replace the exit of every skipped operator by its definition; returns the row sets by name.

    ``groups`` are those of processes that exchange values in operators.
    """
    sets = RowSets(graph, plan, source, groups)
    by_exit: dict[fx.Node, list[Skip]] = {}
    for skip in plan.skips:
        by_exit.setdefault(skip.operator.exit, []).append(skip)
    streams: dict[fx.Node, fx.Node] = {}
    for exit_, skips in by_exit.items():
        entry = skips[0].operator.entry
        streams[exit_] = _replace_exit(
            graph, exit_, streams.get(entry, entry), skips, {skip.operator.branch: sets.of(skip) for skip in skips}
        )
    return sets.by_name


def _replace_exit(
    graph: fx.Graph, exit_: fx.Node, entry: fx.Node, skips: list[Skip], skipped: dict[fx.Node, RowSet]
) -> fx.Node:
    """The residual stream after the operators; ``entry`` is the stream before them, ``skipped`` the rows by branch."""
    out = tensor(exit_)
    assert out is not None
    inserted: list[fx.Node] = []

    def call(target: object, *args: object, name: str | None = None, rows: str = "", twin: bool = False) -> fx.Node:
        node = graph.create_node("call_function", target, args, name=name)  # type: ignore[arg-type]
        set_origin(node, Origin(exit_.name, captured_name(exit_), 1 if rows else None, rows, twin))
        inserted.append(node)
        return node

    with graph.inserting_before(exit_):
        stream = entry
        for term in skips[0].operator.summands:
            if term is not skips[0].operator.entry and term not in skipped:
                stream = call(op.add, stream, term)
        base = stream
        dtype = getattr(tensor(entry), "dtype", out.dtype)
        if dtype != out.dtype:
            base = graph.call_method("to", (stream, out.dtype))
            set_origin(base, Origin(exit_.name, exit_.name))
            inserted.append(base)
        for branch, rows in skipped.items():
            before = call(rows.select, base, rows.rows, 1, name=f"{base.name}_rows", rows=rows.name)
            update = call(rows.select, branch, rows.rows, 1, rows=rows.name)
            update = call(op.add, before, update, name=f"{exit_.name}_updated", rows=rows.name, twin=True)
            kept = call(torch.where, rows.live, update, before, name=f"{exit_.name}_kept", rows=rows.name)
            base = call(rows.scatter, base, rows.rows, kept, name=f"{exit_.name}_all")
    copy_origin(inserted, exit_)
    base.meta["example_value"] = out
    exit_.replace_all_uses_with(base)
    # An inner sum is not needed any more, and would go on reading its branch in full.
    dead = [exit_]
    while dead:
        node = dead.pop()
        if not node.users and op_name(node) == "add":
            dead += node.all_input_nodes
            graph.erase_node(node)
    return base
