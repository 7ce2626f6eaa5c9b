"""Write sums of flattened streams as sums of the streams, so that every decoder adds in ``(batch, sequence, width)``.

``view(flat + f(flat), shape)`` with ``flat = reshape(x, (-1, width))`` is ``x + view(f(flat), shape)``, number by
number. Decoders that flatten batch and sequence before an FFN add on the flat side; no later pass has to know.
"""

from __future__ import annotations

from functools import partial

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops import Trait, having, is_inplace, mutated_nodes, op_name, operand, tensor
from opskip_compile.passes.ops.operation import same_sizes
from opskip_compile.passes.ops.streams import is_stream, summands


def add_unflattened(graph: fx.Graph) -> int:
    """Move views back to ``(batch, sequence, width)`` above the sums they read; returns how many."""
    sums = [(node, flat, x) for node in graph.nodes for flat, x in _flattened_operand(node)]
    if not sums:
        return 0
    mutated = mutated_nodes(graph)
    changed = 0
    for end, flat, x in sums:
        total = operand(end)
        terms = summands(total) if total is not None else None
        if total is None or terms is None or mutated.intersection((end, total, flat, x, *terms)):
            continue
        branch = terms[1] if terms[0] is flat else terms[0]
        with graph.inserting_before(end):
            back = graph.node_copy(end, partial(_instead, total, branch))
            order = (x, back) if terms[0] is flat else (back, x)
            new = graph.create_node(total.op, total.target, order)
        back.meta, new.meta = dict(end.meta), {**total.meta, "example_value": end.meta["example_value"]}
        end.replace_all_uses_with(new)
        graph.erase_node(end)
        graph.erase_node(total)
        changed += 1
    return changed


def _instead(old: fx.Node, new: fx.Node, node: fx.Node) -> fx.Node:
    return new if node is old else node


def _flattened_operand(end: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """``[(flat, x)]`` if ``end`` views a sum with ``flat``, which is ``x`` with its first two dimensions merged."""
    if op_name(end) not in ("view", "reshape") or not is_stream(end) or "example_value" not in end.meta:
        return []
    total = operand(end)
    terms = summands(total) if total is not None else None
    if total is None or terms is None or is_inplace(total) or len(total.users) != 1:
        return []
    for flat, branch in (terms, terms[::-1]):
        x = operand(flat) if op_name(flat) in having(Trait.RESHAPES) else None
        if x is not None and is_stream(x) and same_sizes(x, end) and _alike(total, flat, branch):
            return [(flat, x)]
    return []


def _alike(*nodes: object) -> bool:
    """True if all are matrices of one shape and type: the sum neither broadcasts nor promotes."""
    values = [tensor(node) for node in nodes]
    first = values[0]
    return first is not None and all(
        value is not None
        and value.dim() == first.dim() == 2
        and value.dtype == first.dtype
        and all(same_size(a, b) for a, b in zip(value.shape, first.shape, strict=True))
        for value in values
    )
