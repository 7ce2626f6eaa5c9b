"""One spelling per operation, and what each node may mutate or alias.

A Dynamo graph writes the same addition as ``operator.add``, ``torch.add``, ``x.add(...)`` or an ATen overload.
`op_name` folds all of them into one name, so that every other pass asks for ``"add"`` and nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from opskip_compile.passes.runtime import KEPT_ROWS, causal_mask, scatter_rows, select_rows

_SYNONYMS = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "negative": "neg",
    "absolute": "abs",
    "and_": "and",
    "or_": "or",
    "bitwise_and": "and",
    "bitwise_or": "or",
    "logical_and": "and",
    "logical_or": "or",
    "bmm": "matmul",
    "mm": "matmul",
    "concat": "cat",
    "concatenate": "cat",
    "special_expit": "sigmoid",
    "_softmax": "softmax",
    "pos": "positive",
}

_INPLACE_OPERATORS = frozenset(
    f
    for name, f in vars(operator).items()
    if name.startswith("i") and callable(f) and not {name[1:], name[1:] + "_"}.isdisjoint(vars(operator))
) | {operator.setitem, operator.delitem}

# Operations whose result is always new memory, or that read no tensor data at all.
VIEWS = frozenset(
    "view reshape transpose permute expand expand_as unsqueeze squeeze getitem select narrow slice contiguous to "
    "float half bfloat16 double type type_as detach split chunk unbind flatten unflatten movedim swapaxes t mT "
    "view_as reshape_as view_as_complex view_as_real broadcast_to ravel tensor_split int long bool alias "
    "lift_fresh positive dropout identity einsum".split()
)
# Operations that leave every value as it is, up to its data type and its memory.
CASTS = frozenset({"to", "float", "half", "bfloat16", "type", "type_as", "contiguous", "clone"})
# Operations that read the shape of their argument and none of its data.
SHAPE_ONLY = frozenset(
    "size shape dim ndim numel stride device dtype zeros_like ones_like empty_like full_like rand_like randn_like "
    "new_zeros new_ones new_empty new_full".split()
)
# Operations that make new memory without reading any.
FACTORIES = frozenset(
    "arange ones zeros empty full new_ones new_zeros new_empty new_full zeros_like ones_like empty_like".split()
)
_COPIES = frozenset({KEPT_ROWS, causal_mask, scatter_rows, select_rows})
_TRUSTED_MODULES = ("torch", "_operator", "builtins")


def op_name(node: fx.Node) -> str | None:
    """The canonical name of what ``node`` computes, or None if it is not a plain torch operation.

    In-place spellings answer with the name of the operation (``add_`` is ``"add"``); `is_inplace` tells them apart.
    """
    if node.op == "call_method":
        return _method_name(str(node.target))
    if node.op != "call_function":
        return None
    return _settled_name(str(node.args[1])) if node.target is getattr else _function_name(node.target)


@lru_cache(4096)
def _method_name(name: str) -> str:
    return _settled_name(name.strip("_") if name.startswith("__") and name.endswith("__") else name)


@lru_cache(4096)
def _function_name(target: Any) -> str | None:
    if isinstance(target, torch._ops.OpOverload):
        return _settled_name(target._schema.name.split("::")[1]) if target.namespace == "aten" else None
    if isinstance(target, torch._ops.OpOverloadPacket):
        return None if _is_custom(target) else _settled_name(target.__name__)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return None
    # Built-in functions of torch have no module or one of torch's; anything else is a user's function.
    module = getattr(target, "__module__", None)
    if module is not None and module.split(".")[0] not in _TRUSTED_MODULES:
        return None
    name = getattr(target, "__name__", "")
    return _settled_name(name[1:] if target in _INPLACE_OPERATORS and name not in ("setitem", "delitem") else name)


def _settled_name(name: str) -> str:
    if name not in ("and_", "or_"):
        name = name.rstrip("_") or name
    return _SYNONYMS.get(name, name)


def is_inplace(node: fx.Node) -> bool:
    """True if running ``node`` may change the memory of one of its arguments."""
    if node.op == "call_method":
        name = str(node.target)
        return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if node.op != "call_function":
        return False
    given = node.kwargs
    if given and (given.get("inplace") or given.get("out") is not None):
        return True
    return _writes(node.target)


@lru_cache(4096)
def _writes(target: Any) -> bool:
    """True for a function that changes one of its arguments whatever they are."""
    if target in _INPLACE_OPERATORS:
        return True
    if isinstance(target, torch._ops.OpOverload):
        return bool(target._schema.is_mutable)
    if isinstance(target, torch._ops.OpOverloadPacket):
        return _is_custom(target) and any(s.is_mutable for s in target._schemas.values())
    if isinstance(target, torch._ops.HigherOrderOperator):
        return "mutation" in str(target) or "auto_functionalized" in str(target)
    name = getattr(target, "__name__", "")
    return target not in vars(operator).values() and name.endswith("_") and not name.endswith("__")


def tensor(node: object) -> torch.Tensor | None:
    """The example value of a node that yields one tensor, else None."""
    if not isinstance(node, fx.Node):
        return None
    value = node.meta.get("example_value", node.meta.get("val"))
    return value if isinstance(value, torch.Tensor) else None


def mutated_nodes(graph: fx.Graph, known: Iterable[str]) -> frozenset[fx.Node]:
    """Nodes whose memory is written to after they are made, directly or through an alias, and those that write.

    ``known`` names the operations that a rule vouches for. A view, an in-place operation and every operation that
    is not known may return memory of its arguments, so those are joined with them; all members of a joined set that are
    made before something is last written in it count as mutated.
    """
    fresh = frozenset(known) - VIEWS
    parent: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        root = node
        while (up := parent.get(root, root)) is not root:
            root = up
        while (up := parent.get(node, node)) is not root and up is not node:
            parent[node], node = root, up
        return root

    written: list[tuple[fx.Node, int]] = []
    for at, node in enumerate(graph.nodes):
        if node.op not in ("call_function", "call_method", "call_module"):
            continue
        inputs = node.all_input_nodes
        if is_inplace(node):
            out = node.kwargs.get("out")
            if not _is_custom(node.target) and (node.args or out is not None):
                inputs = []
                map_arg(node.args[0] if out is None else out, inputs.append)
            written += [(value, at) for value in inputs]
        elif op_name(node) in fresh or node.target in _COPIES:
            continue
        for other in inputs:
            if not _is_size(other):  # views that read one size do not share memory for it
                parent[find(other)] = find(node)
    last: dict[fx.Node, int] = {}
    for value, at in written:
        last[find(value)] = max(at, last.get(find(value), -1))
    return frozenset(node for i, node in enumerate(graph.nodes) if i <= last.get(find(node), -1))


def _is_size(node: fx.Node) -> bool:
    """True for a number or a shape: it has no memory."""
    return isinstance(node.meta.get("example_value"), int | float | torch.SymInt | torch.SymFloat | torch.Size)


def _is_custom(target: object) -> bool:
    """An operator outside of ATen: any of its arguments may be the one that it writes to."""
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace != "aten"
    if isinstance(target, torch._ops.OpOverloadPacket):
        return not target._qualified_op_name.startswith("aten::")
    return isinstance(target, torch._ops.HigherOrderOperator)


def is_random_or_stateful(node: fx.Node) -> bool:
    """True for dropout that is switched on."""
    if op_name(node) != "dropout":
        return False
    p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    return bool(training) and bool(p != 0.0)
