"""Write sums of flattened streams as sums of the streams, so that every decoder adds in ``(batch, sequence, width)``.

``view(flat + f(flat), shape)`` with ``flat = reshape(x, (-1, width))`` is ``x + view(f(flat), shape)``, number by
number. Decoders that flatten batch and sequence before an FFN add on the flat side; no later pass has to know.
"""

from __future__ import annotations

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.analysis.dataflow import is_stream
from opskip_compile.passes.ops import known_operations
from opskip_compile.passes.ops.nodes import is_inplace, mutated_nodes, op_name, tensor

_VIEWS = ("view", "reshape", "flatten")


def add_unflattened(graph: fx.Graph) -> int:
    """Move views back to ``(batch, sequence, width)`` above the sums they read; returns how many."""
    found = [(node, flat, x) for node in graph.nodes for flat, x in _flattened_operand(node)]
    if not found:
        return 0
    mutated = mutated_nodes(graph, known_operations())
    changed = 0
    for end, flat, x in found:
        total = end.args[0]
        assert isinstance(total, fx.Node)
        if mutated.intersection((end, total, flat, x, *total.all_input_nodes)):
            continue
        branch = total.args[1] if total.args[0] is flat else total.args[0]
        with graph.inserting_before(end):
            back = graph.create_node(end.op, end.target, (branch, *end.args[1:]), dict(end.kwargs))
            order = (x, back) if total.args[0] is flat else (back, x)
            new = graph.create_node(total.op, total.target, order)
        back.meta, new.meta = dict(end.meta), {**total.meta, "example_value": end.meta["example_value"]}
        end.replace_all_uses_with(new)
        graph.erase_node(end)
        graph.erase_node(total)
        changed += 1
    return changed


def _flattened_operand(end: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """``[(flat, x)]`` if ``end`` views a sum with ``flat``, which is ``x`` with its first two dimensions merged."""
    total = end.args[0] if end.args else None
    if op_name(end) not in ("view", "reshape") or not is_stream(end) or not isinstance(total, fx.Node):
        return []
    plain = op_name(total) == "add" and not is_inplace(total) and not total.kwargs and len(total.args) == 2
    if not plain or len(total.users) != 1 or "example_value" not in end.meta:
        return []
    for flat, branch in (total.args, total.args[::-1]):
        x = flat.args[0] if isinstance(flat, fx.Node) and op_name(flat) in _VIEWS and flat.args else None
        if isinstance(x, fx.Node) and is_stream(x) and _same_shape(x, end) and _alike(total, flat, branch):
            assert isinstance(flat, fx.Node)
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


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    first, second = tensor(a), tensor(b)
    assert first is not None
    assert second is not None
    return all(same_size(i, j) for i, j in zip(first.shape, second.shape, strict=True))
