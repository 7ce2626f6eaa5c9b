"""Let attentions share heads of keys and values on a CPU instead of copying them.

With fewer heads of keys than of queries (grouped-query attention), transformers copies each as often as it is read
wherever an attention has a mask. PyTorch's kernel for CPUs takes them as they are; those for a GPU may not, under a
mask. The values do not change.
"""

from __future__ import annotations

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.graph.origin import captured_name
from opskip_compile.passes.ops import argument, call_of, mutated_nodes, op_name, operand, tensor


def share_heads(graph: fx.Graph, captured: fx.Graph) -> int:
    """Give attentions the keys and values that theirs are copies of; returns how many.

    Args:
        graph: a rewritten graph.
        captured: what it was made of, with example values: a rewritten node has none of its own.
    """
    attentions = [node for node in graph.nodes if op_name(node) == "scaled_dot_product_attention"]
    on_cpu = {node.name for node in captured.nodes if (x := tensor(node)) is not None and x.device.type == "cpu"}
    mutated = mutated_nodes(graph) if attentions else frozenset()
    changed = 0
    for node in attentions:
        call = call_of(node)
        if call is None or call["enable_gqa"] or call["dropout_p"] != 0.0 or captured_name(node) not in on_cpu:
            continue
        key, value = (_source(call.operand(name)) for name in ("key", "value"))
        if key is None or value is None or key[1] != value[1] or key[0] in mutated or value[0] in mutated:
            continue
        names = ("attn_mask", "dropout_p", "is_causal", "scale")
        node.args = (call.operand("query"), key[0], value[0])
        node.kwargs = {**{name: call[name] for name in names}, "enable_gqa": True}
        changed += 1
    return changed


def _source(node: fx.Node) -> tuple[fx.Node, int] | None:
    """``x`` and ``n`` of ``x[:, :, None].expand(batch, heads, n, ...).reshape(batch, heads * n, ...)``."""
    expanded = operand(node) if op_name(node) in ("reshape", "view") else None
    wider = operand(expanded) if expanded is not None and op_name(expanded) == "expand" else None
    source = operand(wider) if wider is not None and _is_new_dimension(wider) else None
    examples = [tensor(each) for each in (source, wider, expanded, node)]
    shapes = [each.shape for each in examples if each is not None]
    if source is None or [len(shape) for shape in shapes] != [4, 5, 5, 4]:
        return None
    (batch, heads, *rest), (_, _, times, *_) = shapes[0], shapes[2]
    if not isinstance(heads, int) or not isinstance(times, int):
        return None
    for number, shape in ((1, shapes[1]), (times, shapes[2]), (None, shapes[3])):
        wanted = (batch, heads * times, *rest) if number is None else (batch, heads, number, *rest)
        if not all(same_size(a, b) for a, b in zip(shape, wanted, strict=True)):
            return None
    return source, times


def _is_new_dimension(node: fx.Node) -> bool:
    """True for ``x[:, :, None, ...]`` and ``x.unsqueeze(2)``."""
    if op_name(node) == "unsqueeze":
        return argument(node, "dim") in (2, -3)
    index = node.args[1] if op_name(node) == "getitem" and len(node.args) == 2 else None
    if not isinstance(index, tuple) or len(index) < 3 or index[2] is not None:
        return False
    return index[:2] == (slice(None), slice(None)) and all(each in (slice(None), Ellipsis) for each in index[3:])
