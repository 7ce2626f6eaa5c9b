"""Operations that stand for vLLM's in a graph: attention to the paged cache, packed products, experts, sums over ranks.

vLLM writes their results into memory that it made before. Written as functions of their operands they are operations
like any other, and have entries in the table of operations.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from opskip_compile._compat import serving
from opskip_compile.errors import OpSkipError
from opskip_compile.integrations.vllm.step import STEPS
from opskip_compile.passes.ops import Call, Dims, Operation, declare
from opskip_compile.passes.ops.attention import flops_of_product
from opskip_compile.passes.ops.families import by_broadcasting
from opskip_compile.passes.ops.operation import Arguments, ShapeOf, declined
from opskip_compile.passes.refusal import Refusal, Refused, Why
from opskip_compile.passes.runtime import KEPT_ROWS
from opskip_compile.passes.scores import CRITICAL_ROWS
from opskip_compile.schedule.left_out import ROWS

CHOSEN = "chosen"  # the rows of an attention that the graph itself chooses


@torch.library.custom_op("opskip::paged_attention", mutates_args=())
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
        ``(n, heads, width)``; zeros for rows that are not live.

    Raises:
        OpSkipError: there is no step that says which rows are kept.
    """
    if writes:
        serving.write_keys_and_values(key, value, layer)
    out = query.new_zeros(query.shape[0], query.shape[1], width)
    if not kept:
        serving.attend(query, key, value, out, layer)
        return out
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


@paged_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, layer: str, width: int, *rest: Any) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], width)


@torch.library.custom_op("opskip::packed_linear", mutates_args=())
def packed_linear(x: Tensor, handler: Tensor, bias: Tensor | None, features: int) -> Tensor:
    """``(rows, width) -> (rows, features)`` by a weight that oneDNN has packed and ``handler`` names."""
    out = x.new_empty(x.shape[0], features)
    serving.multiply_packed(x, handler, bias, out)
    return out


@packed_linear.register_fake
def _(x: Tensor, handler: Tensor, bias: Tensor | None, features: int) -> Tensor:
    return x.new_empty(x.shape[0], features)


@torch.library.custom_op("opskip::blocked_linear", mutates_args=())
def blocked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, is_vnni: bool, features: int) -> Tensor:
    """``(rows, width) -> (rows, features)`` by a weight that stands in blocks, as AMX has it."""
    out = x.new_empty(x.shape[0], features)
    serving.multiply_blocked(x.contiguous(), weight, bias, is_vnni, out)
    return out


@blocked_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, is_vnni: bool, features: int) -> Tensor:
    return x.new_empty(x.shape[0], features)


@torch.library.custom_op("opskip::packed_experts", mutates_args=())
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


@packed_experts.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("opskip::sum_over_ranks", mutates_args=())
def sum_over_ranks(x: Tensor, handle: int) -> Tensor:
    """``x`` of all ranks of a tensor-parallel group, which have the same rows, added up."""
    out = x.clone()
    serving.sum_over_ranks(handle, out)
    return out


@sum_over_ranks.register_fake
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
SUM_OVER_RANKS = torch.ops.opskip.sum_over_ranks.default
declare(
    Operation("opskip::sum_over_ranks", ("input, handle",), rows=by_broadcasting("input")), functions=[SUM_OVER_RANKS]
)
# The same on a GPU, where vLLM has a function of it.
declare(
    Operation("vllm::all_reduce", ("input, group_name",), renamed={"tensor": "input"}, rows=by_broadcasting("input")),
)
