"""Products with quantised weights, and what quantises rows for them: each row of the left operand by itself, or not.

What is told apart is where the scales of the rows come from. An operation that is given them works row by row; one
that looks for outliers in all rows, as LLM.int8() does, mixes them.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops.attention import flops_of_product
from opskip_compile.passes.ops.operation import Call, Dims, Operation, Rows, ShapeOf, Trait, declined, shape
from opskip_compile.passes.ops.table import declare
from opskip_compile.passes.refusal import Refusal

FEATURES = declined("the rows are the output features")
OUTLIERS = declined("it looks for outliers in the columns of all rows")


def by_row(*scales: str) -> Rows:
    """The left operand times a weight, and the arguments ``scales`` with one number for each row."""

    def rows(call: Call, dim: int) -> Dims | Refusal:
        x = call.operand()
        if dim >= len(shape(x)) - 1:
            return FEATURES
        given = [call.operand(name) for name in scales]
        if len({x, *given}) <= len(given) or any(value in given or value is x for value in _others(call, scales)):
            return declined("two operands are the same tensor")
        if given and len(shape(x)) != 2:
            return declined("its rows are in several dimensions")
        return {x: dim, **dict.fromkeys(given, 0)}

    return rows


def _others(call: Call, scales: tuple[str, ...]) -> list[fx.Node]:
    return call.tensors(*(name for name in call.arguments if name not in ("input", *scales)))


def scaled(call: Call, dim: int) -> Dims | Refusal:
    """``_scaled_mm(x, w, scale of x, scale of w)``: one scale for each row of x, or one for all, which is given."""
    x, scale = call.operand(), call.operand("scale_a")
    if dim != 0:
        return FEATURES
    if call["scale_result"] is not None or x in call.tensors("mat2", "scale_b", "bias", "scale_a"):
        return declined("its result is scaled once more, or two operands are the same tensor")
    sizes = shape(scale)
    if all(same_size(size, 1) for size in sizes):
        return {x: 0}
    if len(sizes) != 2 or not same_size(sizes[0], shape(x)[0]) or not same_size(sizes[1], 1):
        return declined("its scales are those of blocks, not of rows")
    return {x: 0, scale: 0}


def quantised_alone(call: Call, dim: int) -> Dims | Refusal:
    """Numbers in int8 and a scale for each row, and the columns with outliers; `getitem` takes them apart."""
    x = call.operand()
    if call["threshold"] != 0:
        return OUTLIERS
    return {x: 0} if dim == 0 and len(shape(x)) == 2 else FEATURES


def mixed(call: Call, dim: int) -> Dims | Refusal:
    """LLM.int8(): the columns with outliers are multiplied in 16 bits."""
    return OUTLIERS


def flops_of_int8(call: Call, shape_of: ShapeOf) -> int | None:
    """Of the product that gives several values: rows times inner size times outputs."""
    rows, weight = shape_of(call["CA"]), shape_of(call["CB"])
    return None if not rows or not weight else 2 * prod(rows) * weight[0]


def _product(name: str, signature: str, *scales: str, **more: Any) -> Operation:
    more.setdefault("rows", by_row(*scales))
    return Operation(name, (signature,), product=True, flops=flops_of_product("input"), **more)


_LEFT = {"A": "input", "inp": "input"}
_INT4 = "input, mat2, qGroupSize, qScaleAndZeros"
_4BIT = "input, B, shapeB, absmax, blocksize, quant_type, bias=None, absmax_8bit=None, absmax_code=None"
declare(
    _product("_int_mm", "input, mat2"),
    _product(
        "_scaled_mm",
        "input, mat2, scale_a, scale_b, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False",
        rows=scaled,
    ),
    _product("_weight_int8pack_mm", "input, mat2, scales"),
    _product("_weight_int4pack_mm", _INT4, synonyms=("_weight_int4pack_mm_for_cpu",)),
    # Activations get a scale for each row inside.
    _product("_dyn_quant_matmul_4bit", "input, packed_weights, block_size, in_features, out_features", renamed=_LEFT),
    # optimum-quanto
    _product("quanto::qbytes_mm", "input, B, scales", renamed=_LEFT),
    # bitsandbytes
    _product("bitsandbytes::gemm_4bit", f"{_4BIT}, absmax_offset=None", renamed=_LEFT),
    _product("bitsandbytes::gemv_4bit", "input, B, shapeB, absmax, code, blocksize", renamed=_LEFT),
    _product("bitsandbytes::int8_linear_matmul", "input, B", renamed=_LEFT),
    _product(
        "bitsandbytes::int8_scaled_mm",
        "input, B, row_stats, col_stats, bias=None, dtype=None",
        "row_stats",
        renamed=_LEFT,
    ),
    Operation(
        "bitsandbytes::int8_mixed_scaled_mm",
        ("A, CA, CB, SCA, SCB, outlier_cols=None, bias=None",),
        rows=mixed,
        product=True,
        flops=flops_of_int8,
        traits=frozenset({Trait.PARTS}),
    ),
    Operation(
        "bitsandbytes::int8_vectorwise_quant",
        ("input, threshold=0.0",),
        renamed=_LEFT,
        rows=quantised_alone,
        traits=frozenset({Trait.PARTS}),
    ),
)
