"""What a residual stream looks like in a graph: its shape, its sums, and the casts that lie on it."""

from __future__ import annotations

from torch import fx

from opskip_compile.passes.ops.operation import Trait, same_sizes, tensor
from opskip_compile.passes.ops.table import call_of, having, op_name, operand


def is_stream(node: fx.Node) -> bool:
    """True if the value can be a residual stream: floating point ``(batch, sequence, width)``."""
    value = tensor(node)
    return value is not None and value.dim() == 3 and value.is_floating_point()


def is_as_wide(node: fx.Node, stream: fx.Node) -> bool:
    """True if a value can be a stream and has the width of ``stream``."""
    return is_stream(node) and same_sizes(node, stream, -1)


def summands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two values that ``node`` adds, in order and in place or not; None if it is no sum of two tensors."""
    call = call_of(node) if op_name(node) == "add" else None
    if call is None or call["alpha"] not in (1, None):
        return None
    first, second = call["input"], call["other"]
    return (first, second) if isinstance(first, fx.Node) and isinstance(second, fx.Node) else None


def uncast(node: fx.Node) -> fx.Node:
    """What ``node`` is a cast of, or the node itself."""
    while op_name(node) in having(Trait.CAST) and (source := operand(node)) is not None:
        node = source
    return node
