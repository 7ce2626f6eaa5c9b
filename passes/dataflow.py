"""What is computed from what: the data flow of a graph, the residual streams in it and its attention products."""

from __future__ import annotations

import networkx as nx
from torch import fx

from opskip_compile.passes.ops import CASTS, SHAPE_ONLY, VIEWS, is_inplace, op_name, tensor


def is_stream(node: fx.Node) -> bool:
    """True if the value can be a residual stream: floating point ``(batch, sequence, width)``."""
    value = tensor(node)
    return value is not None and value.dim() == 3 and value.is_floating_point()


def dataflow(root: fx.Node) -> nx.DiGraph:
    """Every value that is computed from the data of ``root``, with an edge from each to its readers.

    What an operation writes into the memory of another value is read by all later readers of that memory.
    """
    flow = nx.DiGraph()
    flow.add_node(root)
    stack = [root]
    order = {node: i for i, node in enumerate(root.graph.nodes)}
    while stack:
        node = stack.pop()
        for user in (*node.users, *_readers_of_write(node, order)):
            if user.op == "output" or op_name(user) in SHAPE_ONLY:
                continue
            if user not in flow:
                stack.append(user)
            flow.add_edge(node, user)
    return flow


def _readers_of_write(node: fx.Node, order: dict[fx.Node, int]) -> list[fx.Node]:
    """Who reads, after ``node``, the memory that it writes to in place; none if it writes nothing."""
    target = node.kwargs.get("out", node.args[0] if node.args else None) if is_inplace(node) else None
    if not isinstance(target, fx.Node):
        return []
    base = target
    while op_name(base) in VIEWS and base.args and isinstance(base.args[0], fx.Node):
        base = base.args[0]
    family, stack = {base}, [base]
    while stack:
        views = [u for u in stack.pop().users if op_name(u) in VIEWS and u not in family]
        family.update(views)
        stack += views
    return [u for member in family for u in member.users if order[u] > order[node]]


def is_attention_product(node: fx.Node) -> bool:
    """True for a fused attention call, or a softmax whose result, or a slice of it, goes into a matrix product."""
    name = op_name(node)
    if name == "scaled_dot_product_attention":
        return True
    if name is None and node.op == "call_function":
        target = str(getattr(node.target, "__name__", node.target)).lower()
        return "flex_attention" in target or "flash_attn" in target or "flash_attention" in target
    if name != "softmax":
        return False
    ahead, seen = list(node.users), {node}
    while ahead:
        user = ahead.pop()
        if op_name(user) == "matmul":
            return True
        if user not in seen and op_name(user) in CASTS | {"dropout", "getitem"}:  # a slice leaves the sinks out
            seen.add(user)
            ahead.extend(user.users)
    return False
