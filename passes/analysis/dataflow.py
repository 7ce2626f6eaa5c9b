"""What is computed from what: the data flow of a graph, the residual streams in it and its attention products."""

from __future__ import annotations

import networkx as nx
import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops.nodes import CASTS, SHAPE_ONLY, VIEWS, is_inplace, op_name, tensor


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


PRODUCTS = ("matmul", "einsum")  # of two tensors, as the scores of an attention are computed
_GIVEN = ("placeholder", "get_attr")
_KERNELS = ("flex_attention", "flash_attn", "flash_attention")


def is_attention_product(node: fx.Node) -> bool:
    """True for an attention kernel, or a softmax whose result, or a slice of it, goes into a matrix product."""
    name = op_name(node)
    if name == "scaled_dot_product_attention":
        return True
    if name is None and node.op == "call_function":
        target = str(node.target).lower()
        return any(word in target for word in _KERNELS) or _takes_queries_keys_values(node)
    if name != "softmax":
        return False
    ahead, seen = list(node.users), {node}
    while ahead:
        user = ahead.pop()
        if op_name(user) in PRODUCTS:
            return True
        if user not in seen and op_name(user) in CASTS | {"dropout", "getitem"}:  # a slice leaves the sinks out
            seen.add(user)
            ahead.extend(user.users)
    return False


def _takes_queries_keys_values(node: fx.Node) -> bool:
    """True for an operation that nothing is known of, if its first three operands fit each other as an attention's."""
    given = [
        tensor(arg)
        for arg in [*node.args, *node.kwargs.values()][:3]
        if isinstance(arg, fx.Node) and arg.op not in _GIVEN
    ]
    found = [x for x in given if x is not None and x.dim() == 4 and x.is_floating_point()]
    if len(found) < 3 or isinstance(node.target, torch._ops.HigherOrderOperator):
        return False
    query, key, value = found
    same = [same_size(query.shape[0], key.shape[0]), same_size(query.shape[3], key.shape[3])]
    return all([*same, *(same_size(key.shape[d], value.shape[d]) for d in range(3))])


def factors(product: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The two operands of one of `PRODUCTS`, as far as they are written as such."""
    given = list(product.args[op_name(product) == "einsum" :]) + list(product.kwargs.values())
    if len(given) == 1 and isinstance(given[0], list | tuple):
        given = list(given[0])
    left, right = given if len(given) == 2 else (None, None)
    return (left if isinstance(left, fx.Node) else None), (right if isinstance(right, fx.Node) else None)
