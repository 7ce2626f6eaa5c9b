"""Write in-place updates of fresh values out of place, so that they are plain operations for every later pass.

``x /= s`` on a value that this graph has just made, and that no view shares, gives the same numbers as ``y = x / s``
with ``y`` in place of ``x`` from then on. Routers of experts are written like that; without it a whole FFN would count
as mutated.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from opskip_compile.passes.graph.origin import Origin, set_origin
from opskip_compile.passes.ops import known_operations
from opskip_compile.passes.ops.elementwise import POINTWISE
from opskip_compile.passes.ops.nodes import FACTORIES, VIEWS, is_inplace, op_name, tensor

_TUPLES = frozenset({"topk", "sort"})
_METHODS = frozenset(POINTWISE.split()) | {"scatter"}


def write_out_of_place(graph: fx.Graph) -> int:
    """Replace every in-place update that can be shown to be private to its value; returns how many."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    changed = 0
    for node in list(graph.nodes):
        made = _pure(node)
        target = node.args[0] if made is not None and node.args else None
        if made is None or not isinstance(target, fx.Node) or not _is_private(target, node, order):
            continue
        kind, function, args = made
        with graph.inserting_after(node):
            new = graph.create_node(kind, function, args, dict(node.kwargs))
        new.meta = {**target.meta, **{key: value for key, value in node.meta.items() if key != "example_value"}}
        set_origin(new, _origin(node, target))
        order[new] = order[node]
        for user in list(target.users):
            if order[user] > order[node]:
                user.replace_input_with(target, new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        changed += 1
    return changed


def _origin(node: fx.Node, target: fx.Node) -> Origin:
    """An index assignment has no result of its own: what stands for it has the shape of its ``target``."""
    if tensor(node) is None:
        return Origin(node.name, like=target.name)
    return Origin(node.name, like=node.name, twin=True)


def _pure(node: fx.Node) -> tuple[str, str | Callable[..., Any], tuple[Any, ...]] | None:
    """The operation that gives what ``node`` writes, if it writes a whole value of the same type; or None."""
    base = tensor(node.args[0]) if node.args else None
    if base is None or not is_inplace(node) or any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return None
    if node.target is operator.setitem:
        index, value = tensor(node.args[1]), tensor(node.args[2])
        if index is None or value is None or base.dtype != value.dtype or index.dtype != torch.int64 or node.users:
            return None
        return "call_method", "index_put", (node.args[0], (node.args[1],), node.args[2])
    if op_name(node) not in _METHODS or not _keeps_type(node, base):
        return None
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        return "call_method", name.removesuffix("_"), node.args
    function = getattr(operator, name.removeprefix("i"), None)
    is_operator = node.target is getattr(operator, name, None) and name.startswith("i")
    return ("call_function", function, node.args) if is_operator and function is not None else None


def _keeps_type(node: fx.Node, base: torch.Tensor) -> bool:
    """True if the operation does not promote: in place, the result is cast back to the type of ``base``."""
    if node.target in ("masked_fill_", "scatter_"):
        return True
    others: list[Any] = [tensor(arg) if isinstance(arg, fx.Node) else arg for arg in node.args[1:]]
    return all(isinstance(other, torch.Tensor | int | float) for other in others) and all(
        torch.result_type(base, other) == base.dtype for other in others
    )


def _is_private(value: fx.Node, writer: fx.Node, order: dict[fx.Node, int]) -> bool:
    """True if ``value`` is new memory of this graph that nothing made before ``writer`` shares."""
    name, fresh = op_name(value), known_operations() - VIEWS
    if name == "getitem":
        whole = value.args[0]
        if not isinstance(whole, fx.Node) or op_name(whole) not in _TUPLES:
            return False
        same = [user for user in whole.users if user.args[1] == value.args[1]]
        if len(same) != 1:
            return False
    elif is_inplace(value) or (name not in fresh and name not in FACTORIES):
        return False
    before = [user for user in value.users if user is not writer and order[user] < order[writer]]
    return all(op_name(user) in fresh and not is_inplace(user) for user in before)
