"""Operations that stand for vLLM's in a graph: attention to the paged cache, packed products, experts, sums over ranks.

vLLM writes their results into memory that it made before. Written as functions of their operands they are operations
like any other, and have entries in the table of operations.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from opskip_compile._compat import served_experts, serving
from opskip_compile.errors import OpSkipError
from opskip_compile.integrations.vllm.step import STEPS
from opskip_compile.passes.ops import Call, Dims, Operation, declare
from opskip_compile.passes.ops.attention import flops_of_product
from opskip_compile.passes.ops.families import by_broadcasting
from opskip_compile.passes.ops.operation import Arguments, ShapeOf, Trait, declined
from opskip_compile.passes.refusal import Refusal, Refused, Why
from opskip_compile.passes.runtime import KEPT_ROWS
from opskip_compile.passes.scores import CRITICAL_ROWS
from opskip_compile.schedule.left_out import ROWS

CHOSEN = "chosen"  # the rows of an attention that the graph itself chooses
_LIBRARY: Any = torch.library.Library("opskip", "FRAGMENT")  # type: ignore[no-untyped-call]
_F = TypeVar("_F", bound=Callable[..., Any])


def _operator(function: _F) -> _F:
    """An operator ``opskip::NAME`` that runs ``function``, which changes no operand and has no gradient.

    As vLLM makes its own: one of `torch.library.custom_op` took 55 microseconds a call in a profile, this one 29, and a
    layer has five of them.
    """
    name = function.__name__
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    return function


def _fake(name: str) -> Callable[[_F], _F]:
    """What the operator gives where only sizes are known."""
    register: Callable[[_F], _F] = torch.library.register_fake(f"opskip::{name}")
    return register


@_operator
def paged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: str,
    width: int,
    writes: bool,
    kept: str,
    rows: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Write keys and values of every row of the step to the paged cache, and attend from some rows or from all.

    Args:
        query: ``(n, heads, size)``; with ``kept``, the kept rows of the step in order, then such as are not live.
        key, value: ``(rows of the step, key heads, size)``, of every row.
        layer: vLLM's name of the attention layer.
        width: size of a head of the values.
        writes: False where the layer reads the cache of another one.
        kept: the row set that is left out of the queries, or `CHOSEN`; empty for queries of all rows.
        rows: with `CHOSEN` the rows of the queries, int64 ``(1, n)``.
        scale: of the products, for those who ask for their weights; None where they have more to them.

    Returns:
        ``(n, heads, width)``; with ``kept`` zeros for rows that are not live.

    Raises:
        OpSkipError: there is no step that says which rows are kept.
    """
    if writes:
        serving.write_keys_and_values(key, value, layer)
    shape = query.shape[0], query.shape[1], width
    if not kept:
        out = query.new_empty(shape)
        serving.attend(query, key, value, out, layer)
        return out
    out = query.new_zeros(shape)
    step = STEPS.now
    if step is None:
        raise OpSkipError(f"opskip: {layer} is asked for kept rows outside of a step that has some")
    if rows is None:
        metadata, own = step.metadata.get(layer), step.kept[kept]
        if metadata is not None:
            _attend(query[: len(own)], key, value, out[: len(own)], layer, own, metadata)
        return out
    own, order = rows[0].sort()
    metadata = step.chosen(layer, own)
    if metadata is not None:
        count = int(metadata.num_actual_tokens)  # rows that fill the step up stand last
        ordered = out.new_zeros(out.shape)
        _attend(query[order][:count], key, value, ordered[:count], layer, own[:count], metadata)
        out[order] = ordered
    return out


def _attend(query: Tensor, key: Tensor, value: Tensor, out: Tensor, layer: str, rows: Tensor, metadata: Any) -> None:
    serving.attend(query, key.index_select(0, rows), value.index_select(0, rows), out, layer, metadata)


@_fake("paged_attention")
def _(query: Tensor, key: Tensor, value: Tensor, layer: str, width: int, *rest: Any) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], width)


@_operator
def packed_linear(x: Tensor, handler: Tensor, bias: Tensor | None, features: int) -> Tensor:
    """``(rows, width) -> (rows, features)`` by a weight that oneDNN has packed and ``handler`` names."""
    out = x.new_empty(x.shape[0], features)
    serving.multiply_packed(x, handler, bias, out)
    return out


@_fake("packed_linear")
def _(x: Tensor, handler: Tensor, bias: Tensor | None, features: int) -> Tensor:
    return x.new_empty(x.shape[0], features)


@_operator
def blocked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, is_vnni: bool, features: int) -> Tensor:
    """``(rows, width) -> (rows, features)`` by a weight that stands in blocks, as AMX has it."""
    out = x.new_empty(x.shape[0], features)
    serving.multiply_blocked(x.contiguous(), weight, bias, is_vnni, out)
    return out


@_fake("blocked_linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, is_vnni: bool, features: int) -> Tensor:
    return x.new_empty(x.shape[0], features)


@_operator
def packed_experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    bias_up: Tensor | None,
    bias_down: Tensor | None,
    weights: Tensor,
    experts: Tensor,
    skip_weighted: bool,
    activation: str,
    kernel: str,
) -> Tensor:
    """``(rows, width)`` of the same: each row asks its ``experts`` ``(rows, chosen)``, summed by ``weights``."""
    out = torch.empty_like(x)
    packed = (gate_up, down, bias_up, bias_down)
    serving.ask_experts(out, x, *packed, weights, experts, skip_weighted, activation, kernel)
    return out


@_fake("packed_experts")
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


@_operator
def routed_experts(x: Tensor, logits: Tensor, shared: Tensor | None, layer: str, features: int) -> Tensor:
    """``(rows, width) -> (rows, features)``: each row asks the experts that its ``logits`` choose.

    ``shared`` is what vLLM hands over of the row besides; ``layer`` its name of the experts.
    """
    found: Tensor = served_experts.ask(x.clone(memory_format=torch.contiguous_format), logits, shared, layer)
    return found


@_fake("routed_experts")
def _(x: Tensor, logits: Tensor, shared: Tensor | None, layer: str, features: int) -> Tensor:
    return x.new_empty(x.shape[0], features)


@_operator
def routed_and_shared_experts(
    x: Tensor, logits: Tensor, shared: Tensor | None, layer: str, features: int
) -> tuple[Tensor, Tensor]:
    """The same beside what the experts that all rows share make of ``shared``, which comes first."""
    ours, routed = served_experts.ask(x.clone(memory_format=torch.contiguous_format), logits, shared, layer)
    return ours, routed


@_fake("routed_and_shared_experts")
def _(x: Tensor, logits: Tensor, shared: Tensor | None, layer: str, features: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x if shared is None else shared), x.new_empty(x.shape[0], features)


@_operator
def sum_over_ranks(x: Tensor, handle: int) -> Tensor:
    """``x`` of all ranks of a tensor-parallel group, which have the same rows, added up."""
    out = x.clone()
    serving.sum_over_ranks(handle, out)
    return out


@_fake("sum_over_ranks")
def _(x: Tensor, handle: int) -> Tensor:
    return torch.empty_like(x)


def _queries(call: Call, dim: int) -> Dims | Refusal:
    """A query row needs its own row, and all keys and values."""
    return {call.operand("query"): 0} if dim == 0 and not call["kept"] else declined("the rows are heads or features")


def _of_rows(call: Call, dim: int, n: fx.Node) -> Arguments:
    """The same for kept rows: their metadata is made before the step, from the mask that the graph has."""
    rows: Any = n.args[0]
    made = getattr(getattr(rows, "args", [None])[0], "target", None)
    if made is CRITICAL_ROWS:
        args, _ = call.replaced("kept", CHOSEN)
        return (*args[:7], rows, *args[8:]), {}
    if made is not KEPT_ROWS:
        raise Refused(Refusal(Why.ARGUMENTS, "vLLM's attention is asked for rows that are not known before the step"))
    return call.replaced("kept", ROWS[bool(rows.args[0].args[1])])


def _flops(call: Call, shape_of: ShapeOf) -> int | None:
    """Scores and the product with the values, for the keys of this step: those before it are not in the graph."""
    query, key, out = shape_of(call["query"]), shape_of(call["key"]), shape_of(call.node)
    return None if not query or not key or not out else 2 * (prod(query) + prod(out)) * key[0]


def _flops_of_experts(call: Call, shape_of: ShapeOf) -> int | None:
    """Of each row the chosen experts: a multiply-add for each of their weights."""
    chosen, up, down = (shape_of(call[name]) for name in ("experts", "gate_up", "down"))
    return None if not chosen or not up or not down else 2 * prod(chosen) * (prod(up) + prod(down)) // up[0]


def _of_each_row(call: Call, dim: int) -> Dims | Refusal:
    """Each row asks its own experts."""
    carried = (call[name] for name in ("input", "logits", "shared"))
    rows: Dims = {value: 0 for value in carried if isinstance(value, fx.Node)}
    return rows if dim == 0 else declined("the rows are the output features")


def _flops_of_routed(call: Call, shape_of: ShapeOf) -> int | None:
    """Of each row the experts that it asks."""
    rows, each = shape_of(call["input"]), served_experts.flops_of_row(call["layer"])
    return None if not rows or each is None else rows[0] * each


def _row_by_row(call: Call, dim: int) -> Dims | Refusal:
    return {call.operand(): 0} if dim == 0 else declined("the rows are the output features")


PAGED_ATTENTION = torch.ops.opskip.paged_attention.default
PACKED_LINEAR = torch.ops.opskip.packed_linear.default
_ATTENTION: dict[str, Any] = {"rows": _queries, "resize": _of_rows, "flops": _flops}
declare(
    Operation(
        "opskip::paged_attention",
        ("query, key, value, layer, width, writes, kept, rows, scale",),
        product=True,
        mixes_rows=True,
        **_ATTENTION,
    ),
    functions=[PAGED_ATTENTION],
)
BLOCKED_LINEAR = torch.ops.opskip.blocked_linear.default
_PRODUCT: dict[str, Any] = {"rows": _row_by_row, "product": True, "flops": flops_of_product("input")}
declare(Operation("opskip::packed_linear", ("input, handler, bias, features",), **_PRODUCT), functions=[PACKED_LINEAR])
declare(
    Operation("opskip::blocked_linear", ("input, weight, bias, is_vnni, features",), **_PRODUCT),
    functions=[BLOCKED_LINEAR],
)
PACKED_EXPERTS = torch.ops.opskip.packed_experts.default
_EXPERTS = "input, gate_up, down, bias_up, bias_down, weights, experts, skip_weighted, activation, kernel"
declare(
    Operation(
        "opskip::packed_experts",
        (_EXPERTS,),
        rows=by_broadcasting("input", "weights", "experts"),
        product=True,
        flops=_flops_of_experts,
    ),
    functions=[PACKED_EXPERTS],
)
ROUTED_EXPERTS = torch.ops.opskip.routed_experts.default
ROUTED_AND_SHARED_EXPERTS = torch.ops.opskip.routed_and_shared_experts.default
_ROUTED: dict[str, Any] = {"rows": _of_each_row, "product": True, "flops": _flops_of_routed}
declare(
    Operation("opskip::routed_experts", ("input, logits, shared, layer, features",), **_ROUTED),
    functions=[ROUTED_EXPERTS],
)
declare(
    Operation(
        "opskip::routed_and_shared_experts",
        ("input, logits, shared, layer, features",),
        traits=frozenset({Trait.PARTS}),
        **_ROUTED,
    ),
    functions=[ROUTED_AND_SHARED_EXPERTS],
)
SUM_OVER_RANKS = torch.ops.opskip.sum_over_ranks.default
declare(
    Operation("opskip::sum_over_ranks", ("input, handle",), rows=by_broadcasting("input")), functions=[SUM_OVER_RANKS]
)
# The same on a GPU, where vLLM has a function of it.
declare(
    Operation("vllm::all_reduce", ("input, group_name",), renamed={"tensor": "input"}, rows=by_broadcasting("input")),
)
