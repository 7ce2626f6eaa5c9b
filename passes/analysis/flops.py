"""FLOPs of a graph, read off the shapes of its matrix products: one multiply-add is 2, everything else is free.

This count knows no config and no formula of a decoder layer, so it checks `opskip_compile.schedule.flops`, which knows
nothing else. It counts the products of the graph as they stand: a batch with its padding, a static cache in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from torch import fx

from opskip_compile.passes.graph.origin import captured_place
from opskip_compile.passes.graph.sizes import Sizes
from opskip_compile.passes.ops.registry import name_of

ShapeOf = Callable[[Any], tuple[int, ...] | None]


def count_by_operator(graph: fx.Graph, owners: Mapping[str, str], sizes: Sizes) -> dict[str, int] | None:
    """FLOPs of every operator; None where a size is not known.

    Args:
        graph: the captured graph or what the passes made of it.
        owners: name of a captured node -> the operator that it belongs to.
        sizes: shapes of the nodes.
    """
    total = dict.fromkeys(owners.values(), 0)
    for node in graph.nodes:
        count = _COUNTS.get(name_of(node))
        owner = owners.get(captured_place(node)) if count is not None else None
        if count is not None and owner is not None:
            flops = _count(count, node, sizes)
            if flops is None:
                return None
            total[owner] += flops
    return total


def _count(count: Callable[[fx.Node, ShapeOf], int | None], node: fx.Node, sizes: Sizes) -> int | None:
    def shape(operand: Any) -> tuple[int, ...] | None:
        found = sizes.shape(operand) if isinstance(operand, fx.Node) else None
        known = tuple(size for size in found or () if isinstance(size, int))
        return known if found is not None and len(known) == len(found) else None

    return count(node, shape)


def _operand(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _product(position: int, name: str) -> Callable[[fx.Node, ShapeOf], int | None]:
    """The result's size times the inner size, which is the last of the operand at ``position``."""

    def count(node: fx.Node, shape: ShapeOf) -> int | None:
        out, left = shape(node), shape(_operand(node, position, name))
        return None if not out or not left else 2 * prod(out) * left[-1]

    return count


def _attention(node: fx.Node, shape: ShapeOf) -> int | None:
    """Scores and the product with the values, of every query with every key: masked ones are computed as well."""
    query, key, out = shape(_operand(node, 0, "query")), shape(_operand(node, 1, "key")), shape(node)
    if not query or not key or not out:
        return None
    return 2 * prod(query) * key[-2] + 2 * prod(out) * key[-2]


def _einsum(node: fx.Node, shape: ShapeOf) -> int | None:
    """Two operands in letters: the product of the size of every letter."""
    equation, operands = node.args[0], node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or "." in equation or len(operands) != 2:
        return None
    letters: dict[str, int] = {}
    for term, operand in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        found = shape(operand)
        if found is None or len(found) != len(term):
            return None
        letters.update(zip(term, found, strict=True))
    return 2 * prod(letters.values())


_COUNTS: dict[str, Callable[[fx.Node, ShapeOf], int | None]] = {
    "linear": _product(0, "input"),
    "matmul": _product(0, "input"),
    "addmm": _product(1, "mat1"),
    "baddbmm": _product(1, "batch1"),
    "einsum": _einsum,
    "grouped_mm": _product(0, "input"),
    "_grouped_mm": _product(0, "input"),
    "grouped_mm_fallback": _product(0, "input"),
    "scaled_dot_product_attention": _attention,
    "attend.default": _attention,
}
