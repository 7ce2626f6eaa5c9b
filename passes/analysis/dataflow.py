"""What is computed from what: the data flow of a graph and the attention products in it."""

from __future__ import annotations

import networkx as nx
from torch import fx

from opskip_compile._compat.operations import is_higher_order
from opskip_compile.passes.ops import Trait, attention_kernels, call_of, having, op_name, operand, tensor
from opskip_compile.passes.ops.memory import readers_after
from opskip_compile.passes.ops.operation import same_sizes


def dataflow(root: fx.Node) -> nx.DiGraph:
    """Every value that is computed from the data of ``root``, with an edge from each to its readers.

    What an operation writes into the memory of another value is read by all later readers of that memory.
    """
    flow = nx.DiGraph()
    flow.add_node(root)
    stack = [root]
    order = {node: i for i, node in enumerate(root.graph.nodes)}
    shapes_only = having(Trait.SHAPE_ONLY)
    while stack:
        node = stack.pop()
        for user in (*node.users, *readers_after(node, order)):
            if user.op == "output" or op_name(user) in shapes_only:
                continue
            if user not in flow:
                stack.append(user)
            flow.add_edge(node, user)
    return flow


SCORES = ("matmul", "einsum")  # products of two tensors, as the scores of an attention are computed
_GIVEN = ("placeholder", "get_attr")
_KERNELS = ("flex_attention", "flash_attn", "flash_attention")


def is_attention_product(node: fx.Node) -> bool:
    """True for an attention kernel, or a softmax whose result, or a slice of it, goes into a matrix product."""
    name = op_name(node)
    if name in attention_kernels():
        return True
    if name is None and node.op == "call_function":
        target = str(node.target).lower()
        return any(word in target for word in _KERNELS) or _takes_queries_keys_values(node)
    return name == "softmax" and product_with_values(node) is not None


def product_with_values(softmax: fx.Node) -> fx.Node | None:
    """The product that reads the probabilities, or a slice of them that leaves the sinks out; None if there is none."""
    through = having(Trait.CAST, Trait.LOOSE) | {"getitem"}
    ahead, seen = list(softmax.users), {softmax}
    while ahead:
        user = ahead.pop()
        if op_name(user) in SCORES:
            return user
        if user not in seen and op_name(user) in through:
            seen.add(user)
            ahead.extend(user.users)
    return None


def scores_of(softmax: fx.Node) -> fx.Node | None:
    """The product that the scores come from, under scales, masks, casts and sinks beside the keys; None if none."""
    scores = operand(softmax)
    for _ in range(16):
        if scores is None or op_name(scores) in SCORES:
            return scores
        call = call_of(scores)
        parts = None if call is None else call["tensors"]
        first = parts[0] if isinstance(parts, list | tuple) and parts else scores.args[0] if scores.args else None
        scores = first if isinstance(first, fx.Node) else None
    return None


def _takes_queries_keys_values(node: fx.Node) -> bool:
    """True for an operation that nothing is known of, if its first three operands fit each other as an attention's."""
    operands = [
        arg
        for arg in [*node.args, *node.kwargs.values()][:3]
        if isinstance(arg, fx.Node) and arg.op not in _GIVEN and _has_heads(arg)
    ]
    if len(operands) < 3 or is_higher_order(node.target):
        return False
    query, key, value = operands
    return same_sizes(query, key, 0, 3) and same_sizes(key, value, 0, 1, 2)


def _has_heads(node: fx.Node) -> bool:
    value = tensor(node)
    return value is not None and value.dim() == 4 and value.is_floating_point()


def factors(product: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The two operands of one of `SCORES`, as far as they are written as such."""
    call = call_of(product)
    if call is None:
        return None, None
    operands = call["operands"] if call.operation.name == "einsum" else [call["input"], call["other"]]
    left, right = operands if isinstance(operands, list | tuple) and len(operands) == 2 else (None, None)
    return (left if isinstance(left, fx.Node) else None), (right if isinstance(right, fx.Node) else None)


def queries_keys_values(product: fx.Node) -> tuple[fx.Node | None, fx.Node | None, fx.Node | None]:
    """The operands of an attention product, as far as they can be told."""
    if op_name(product) == "softmax":
        scores, values = scores_of(product), product_with_values(product)
        queries, keys = (None, None) if scores is None else factors(scores)
        return queries, keys, None if values is None else factors(values)[1]
    call = call_of(product)
    names = ("query", "key", "value")
    if call is not None:
        operands = [call[name] for name in names]
    else:  # a kernel of somebody else: its first three operands, or those of these names
        operands = [*product.args, *(product.kwargs[name] for name in names if name in product.kwargs)]
    nodes = [value if isinstance(value, fx.Node) else None for value in [*operands, None, None, None][:3]]
    return nodes[0], nodes[1], nodes[2]
