"""Write in-place updates of fresh values out of place, so that they are plain operations for every later pass.

``x /= s`` on a value that this graph has just made, and that no view shares, gives the same numbers as ``y = x / s``
with ``y`` in place of ``x`` from then on. Routers of experts are written like that, and activations with ``inplace``;
without it a whole FFN would count as mutated.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.graph.origin import Origin, set_origin
from opskip_compile.passes.ops import Trait, argument, call_of, effects, having, op_name, operand, tensor
from opskip_compile.passes.ops.operation import Arguments, Call, same_sizes

Pure = tuple[str, str | Callable[..., Any], Arguments]


def write_out_of_place(graph: fx.Graph) -> int:
    """Replace every in-place update that can be shown to be private to its value; returns how many."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    changed = 0
    for node in list(graph.nodes):
        written = effects(node).written
        call = call_of(node) if len(written) == 1 else None
        if call is None or call["input"] is not written[0] or not _is_private(written[0], node, order):
            continue
        pure = _pure(call)
        if pure is None:
            continue
        (kind, function, (args, kwargs)), target = pure, written[0]
        with graph.inserting_after(node):
            new = graph.create_node(kind, function, args, kwargs)
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


def _pure(call: Call) -> Pure | None:
    """The operation that gives what the call writes, if it writes a whole value of the same type; or None."""
    node, base = call.node, tensor(call["input"])
    if base is None:
        return None
    if call.operation.name == "setitem":
        index, value = tensor(call["index"]), tensor(call["value"])
        if index is None or value is None or base.dtype != value.dtype or index.dtype != torch.int64 or node.users:
            return None
        if value.dim() > index.dim() + base.dim() - 1:  # index_put wants no leading dimensions of size 1
            return None
        return "call_method", "index_put", ((call["input"], (call["index"],), call["value"]), {})
    if call.operation.name == "copy":
        other = tensor(call["other"])
        fits = other is not None and other.dtype == base.dtype and same_sizes(call["input"], call["other"])
        if not fits or not _keeps_layout(call, base):
            return None
        return "call_method", "clone", ((call["other"],), {"memory_format": torch.contiguous_format})
    if call.operation.name != "scatter" and Trait.POINTWISE not in call.operation.traits:
        return None
    if not _keeps_type(call, base) or (Trait.LOGICAL in call.operation.traits and base.dtype != torch.bool):
        return None
    if not _keeps_layout(call, base):
        return None
    if call["out"] is not None:  # its own operand, whose memory takes a result of its shape
        kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}
        fits = "out" in node.kwargs and same_sizes(node, call["input"])
        return (node.op, node.target, (node.args, kwargs)) if fits else None
    if not call.in_place:  # by its argument ``inplace``
        return (node.op, node.target, call.replaced("inplace", False)) if call["inplace"] is True else None
    arguments = node.args, dict(node.kwargs)
    if node.op == "call_method":
        name = str(node.target)
        plain = f"__{name[3:]}" if name.startswith("__i") else name.removesuffix("_")
        return "call_method", plain, arguments
    name = str(getattr(node.target, "__name__", ""))
    function = getattr(operator, name.removeprefix("i"), getattr(operator, f"{name.removeprefix('i')}_", None))
    is_operator = node.target is getattr(operator, name, None)
    return ("call_function", function, arguments) if is_operator and function is not None else None


def _keeps_type(call: Call, base: torch.Tensor) -> bool:
    """True if the operation does not promote: in place, the result is cast back to the type of ``base``."""
    if call.operation.name in ("masked_fill", "scatter"):
        return True
    others = [value for name, value in call.arguments.items() if name not in ("input", "inplace")]
    values: list[Any] = [tensor(value) if isinstance(value, fx.Node) else value for value in others]
    return all(
        value is None
        or isinstance(value, str)
        or (isinstance(value, torch.Tensor | int | float) and torch.result_type(base, value) == base.dtype)
        for value in values
    )


def _keeps_layout(call: Call, base: torch.Tensor) -> bool:
    """True if the operation gives its result the layout of ``base``, which in place it keeps.

    A later view may need it. Numbers leave the layout alone; other tensors, masked_fill and scatter may not, unless all
    is contiguous.
    """
    alone = len(call.tensors()) == 1 and call.operation.name not in ("masked_fill", "scatter")
    expected: Any = 1
    for size, stride in zip(reversed(base.shape), reversed(base.stride()), strict=True):
        if not (alone or same_size(size, 1) or same_size(stride, expected)):
            return False
        expected = expected * size
    return True


def _is_private(value: fx.Node, writer: fx.Node, order: dict[fx.Node, int]) -> bool:
    """True if ``value`` is new memory of this graph that nothing made before ``writer`` shares.

    A cast may give its operand itself: that one has to be new, and read by nothing else.
    """
    if op_name(value) in having(Trait.CAST) and not effects(value).written:
        source = operand(value)
        if source is None or not (_copies(value, source) or (len(source.users) == 1 and _is_new(source, value, order))):
            return False
    elif not _is_new(value, writer, order):
        return False
    return _is_unshared(value, writer, order)


def _copies(cast: fx.Node, source: fx.Node) -> bool:
    before, after = tensor(source), tensor(cast)
    return before is not None and after is not None and before.dtype != after.dtype


def _is_new(value: fx.Node, writer: fx.Node, order: dict[fx.Node, int]) -> bool:
    if op_name(value) == "getitem":
        whole = operand(value)
        if whole is None or op_name(whole) not in having(Trait.PARTS) or _touches_memory(whole):
            return False
        taken = [argument(user, "index") for user in whole.users]
        if any(op_name(user) != "getitem" for user in whole.users) or taken.count(argument(value, "index")) != 1:
            return False
    elif value.op not in ("call_function", "call_method") or _touches_memory(value):
        return False
    return _is_unshared(value, writer, order)


def _is_unshared(value: fx.Node, writer: fx.Node, order: dict[fx.Node, int]) -> bool:
    before = [user for user in value.users if user is not writer and order[user] < order[writer]]
    return not any(value in effects(user).shared or value in effects(user).written for user in before)


def _touches_memory(node: fx.Node) -> bool:
    effect = effects(node)
    return bool(effect.shared or effect.written)
