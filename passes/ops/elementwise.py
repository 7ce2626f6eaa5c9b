"""Operations that compute every element from the elements in the same place."""

from __future__ import annotations

from typing import Any

from torch import fx

from opskip_compile.passes.ops.nodes import is_random_or_stateful
from opskip_compile.passes.ops.registry import Decline, Dims, all_tensors, broadcast, rule, shape

POINTWISE = (
    # arithmetic
    "add sub mul div neg abs pow square sqrt rsqrt exp exp2 log reciprocal sign floor ceil round trunc remainder "
    "floordiv mod maximum minimum clamp clamp_min clamp_max addcmul addcdiv lerp sin cos tan erf erfc log1p expm1 "
    # activations
    "relu silu gelu sigmoid tanh softplus leaky_relu elu selu mish hardswish hardsigmoid relu6 threshold hardtanh "
    "hardshrink softsign log_sigmoid "
    # comparison and logic
    "eq ne lt le gt ge and or xor invert bitwise_not logical_not where masked_fill isnan isinf isfinite "
    # casts and copies of the same shape
    "float half bfloat16 double type type_as int long bool detach alias nan_to_num positive"
)


@rule(*POINTWISE.split())
def pointwise(node: fx.Node, dim: int) -> Dims | Decline:
    """``op(x, y, ...)[.., r, ..]`` depends on row r of every operand that is not broadcast."""
    return broadcast(node, dim, all_tensors(node), len(shape(node)))


def without_layout(node: fx.Node, dim: int, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """No wish for a memory layout: whether a tensor has one can't be told while the number of rows is not known."""
    return node.args, {key: value for key, value in node.kwargs.items() if key != "memory_format"}


@rule("to", "contiguous", "clone", resize=without_layout)
def copy(node: fx.Node, dim: int) -> Dims | Decline:
    """A copy, perhaps in another type or memory layout."""
    return broadcast(node, dim, all_tensors(node), len(shape(node)))


@rule("dropout")
def dropout(node: fx.Node, dim: int) -> Dims | Decline:
    """Dropout that is switched off is the identity."""
    if is_random_or_stateful(node):
        return Decline("dropout is active, so the rows share one random stream")
    return broadcast(node, dim, all_tensors(node), len(shape(node)))
