"""Matrix products and attention: every row of the left operand gives one row of the result."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.flex import attend_by_flex
from opskip_compile.passes.graph.origin import Origin, captured_name, captured_place, set_origin
from opskip_compile.passes.ops.families import NOTHING
from opskip_compile.passes.ops.operation import (
    Arguments,
    Call,
    Dims,
    Flops,
    Operation,
    Resize,
    Rows,
    ShapeOf,
    Trait,
    declined,
    shape,
    tensor,
)
from opskip_compile.passes.ops.table import declare
from opskip_compile.passes.packages import KERNEL, attend_by_package
from opskip_compile.passes.refusal import Refusal, Why
from opskip_compile.passes.runtime import causal_mask

SAME_TENSOR = declined("both operands are the same tensor")


def linear(call: Call, dim: int) -> Dims | Refusal:
    """``linear(x, w, b)``: every dimension but the last is a row of x."""
    x, weight = call.operand(), call.operand("weight")
    if dim == call.rank - 1:
        return declined("the rows are the output features")
    if len(shape(weight)) != 2 or x in (weight, call["bias"]):
        return declined("the weight is not a matrix of its own")
    if isinstance(call["bias"], fx.Node) and len(shape(call["bias"])) != 1:
        return declined("the bias is not one vector")
    return {x: dim}


def matmul(call: Call, dim: int) -> Dims | Refusal:
    """``a @ b``: row i of the result needs row i of a; leading dimensions are batches of both."""
    left, right = call.operand(), call.operand("other")
    if len(shape(left)) < 2 or len(shape(right)) < 2:
        return declined("an operand is a vector")
    if dim == call.rank - 1:
        return declined("the rows are columns of the right operand")
    if left is right:
        return SAME_TENSOR
    if dim == call.rank - 2:
        return {left: len(shape(left)) - 2}
    dims: dict[fx.Node, int] = {}
    for side in (left, right):
        at = dim - (call.rank - len(shape(side)))
        if at >= 0 and not same_size(shape(side)[at], 1):
            dims[side] = at
    return dims or NOTHING


def addmm(call: Call, dim: int) -> Dims | Refusal:
    """``addmm(bias, a, b)`` with a bias that is the same for every row."""
    bias, left, right = call.operand(), call.operand("mat1"), call.operand("mat2")
    if dim != 0 or len(shape(bias)) != 1:
        return declined("the bias is not one vector, or the rows are columns")
    return SAME_TENSOR if left in (right, bias) else {left: 0}


def einsum(call: Call, dim: int) -> Dims | Refusal:
    """``einsum("bqd,bkd->bqk", x, y)``: every operand that has the letter of the rows."""
    equation, operands = call["equation"], call["operands"]
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return declined("its equation does not name every dimension", Why.ARGUMENTS)
    terms, result = equation.replace(" ", "").split("->")
    letter = result[dim]
    dims: dict[fx.Node, int] = {}
    for term, x in zip(terms.split(","), operands, strict=True):
        if not isinstance(x, fx.Node) or term.count(letter) > 1 or (letter in term and x in dims):
            return declined("an operand has the rows twice")
        if letter in term and not same_size(shape(x)[term.index(letter)], 1):
            dims[x] = term.index(letter)
    if len(set(operands)) < len(operands):
        return declined("two operands are the same tensor")
    return dims or NOTHING


def attention(call: Call, dim: int) -> Dims | Refusal:
    """``sdpa(q, k, v, mask)``: a query row needs its row of q and of the mask, and all of k and v."""
    query, key, value = call.operand("query"), call.operand("key"), call.operand("value")
    mask, rank = call["attn_mask"], call.rank
    if call["dropout_p"] != 0.0:
        return declined("attention dropout is active", Why.RANDOM)
    if dim == rank - 1:
        return declined("the rows are value features")
    if dim == rank - 2:
        if query in (key, value):
            return declined("queries and keys are the same tensor")
        if call["is_causal"] and isinstance(mask, fx.Node):
            return declined("both a mask and is_causal are given")
        if call["is_causal"] and rank != 4:
            return declined("is_causal without a dimension of heads")
        dims = {query: len(shape(query)) - 2}
    else:
        dims = {}
        for x in (query, key, value):
            at = dim - (rank - len(shape(x)))
            if at < 0 or same_size(shape(x)[at], 1):
                continue
            if not same_size(shape(x)[at], shape(call.node)[dim]):
                return declined(f"operand {x.name} has another size in the row dimension")
            dims[x] = at
    if isinstance(mask, fx.Node):
        at = dim - (rank - len(shape(mask)))
        if at >= 0 and not same_size(shape(mask)[at], 1):
            dims[mask] = at
    return dims


def explicit_causal(call: Call, dim: int, n: fx.Node) -> Arguments:
    """``is_causal`` aligns queries to the top left, which is wrong for selected ones: give the mask rows instead."""
    node = call.node
    if not call["is_causal"] or dim != call.rank - 2:  # all queries of some heads or elements stay aligned
        return node.args, dict(node.kwargs)
    rows = n.args[0]  # n is rows.size(1)
    query, key, value = (call.operand(name) for name in ("query", "key", "value"))
    mask = node.graph.call_function(causal_mask, (rows, key))
    named = {name: call[name] for name in ("dropout_p", "scale", "enable_gqa")}
    if named["enable_gqa"] and _wants_all_heads(query):
        named["enable_gqa"] = False
        key, value = (_for_all_heads(x, call) for x in (key, value))
    return (query, key, value), {**named, "attn_mask": mask, "is_causal": False}


def _wants_all_heads(query: fx.Node) -> bool:
    """True where a kernel for shared heads knows no mask, and the operation would be composed of plain products.

    transformers repeats the keys in the same cases (``use_gqa_in_sdpa``).
    """
    value = tensor(query)
    return value is not None and value.device.type == "cuda"


def _for_all_heads(x: fx.Node, call: Call) -> fx.Node:
    times = int(shape(call.operand("query"))[1] // shape(x)[1])
    repeated = call.node.graph.call_method("repeat_interleave", (x, times, 1))
    set_origin(repeated, Origin(captured_place(call.node), captured_name(x), times=times))
    return repeated


def whole_package(call: Call, dim: int) -> Dims | Refusal:
    """A kernel that was not lifted (`passes/normalize/packages.py`)."""
    others = "other keys than those of its rows, or more than its result is read"
    return declined(f"this kernel has a window, a cap, a bias, dropout, {others}")


def whole_flex(call: Call, dim: int) -> Dims | Refusal:
    """One that was not lifted (`passes/normalize/flex.py`)."""
    return declined("its scores are changed or read, or its queries and keys have other batches")


def queries_along(at: int) -> Rows:
    """Queries are rows along dimension ``at``: each needs its own row, and all keys and values of its element."""

    def rows(call: Call, dim: int) -> Dims | Refusal:
        query, key, value = call.operand("query"), call.operand("key"), call.operand("value")
        if dim == 0:
            return {query: 0, key: 0, value: 0}
        if dim != at:
            return declined("the rows are heads or features")
        if query in (key, value):
            return declined("queries and keys are the same tensor")
        return declined("its queries are kept rows already") if isinstance(call["rows"], fx.Node) else {query: at}

    return rows


def told_along(at: int) -> Resize:
    """Kept queries along dimension ``at`` are told which rows they are, unless it is said that they read all keys."""

    def resize(call: Call, dim: int, n: fx.Node) -> Arguments:
        tell = dim == at and call["is_causal"] is not False
        return call.replaced("rows", n.args[0]) if tell else (call.node.args, dict(call.node.kwargs))

    return resize


def _flops_of_keys(dim: int) -> Flops:
    """As `flops_of_attention`, with keys along dimension ``dim``."""

    def count(call: Call, shape_of: ShapeOf) -> int | None:
        query, key, value = (shape_of(call[name]) for name in ("query", "key", "value"))
        if not query or not key or not value:
            return None
        return 2 * prod(query) * key[dim] + 2 * prod(query[:-1]) * key[dim] * value[-1]

    return count


flops_by_package, flops_of_flex = _flops_of_keys(1), _flops_of_keys(2)
_FLEX = "query, key, value, score_mod, block_mask, scale, kernel_options, score_buffers=(), mask_buffers=()"


def flops_of_product(left: str) -> Flops:
    """The result's size times the inner size, which is the last of the operand ``left``."""

    def count(call: Call, shape_of: ShapeOf) -> int | None:
        out, factor = shape_of(call.node), shape_of(call[left])
        return None if not out or not factor else 2 * prod(out) * factor[-1]

    return count


def flops_of_attention(call: Call, shape_of: ShapeOf) -> int | None:
    """Scores and the product with the values, of every query with every key: masked ones are computed as well."""
    query, key, out = shape_of(call["query"]), shape_of(call["key"]), shape_of(call.node)
    if not query or not key or not out:
        return None
    return 2 * prod(query) * key[-2] + 2 * prod(out) * key[-2]


def flops_of_einsum(call: Call, shape_of: ShapeOf) -> int | None:
    """Two operands in letters: the product of the size of every letter."""
    equation, operands = call["equation"], call["operands"]
    if not isinstance(equation, str) or "." in equation or len(operands) != 2:
        return None
    letters: dict[str, int] = {}
    for term, operand in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        sizes = shape_of(operand)
        if sizes is None or len(sizes) != len(term):
            return None
        letters.update(zip(term, sizes, strict=True))
    return 2 * prod(letters.values())


def _product(name: str, *signatures: str, left: str = "input", **more: Any) -> Operation:
    more.setdefault("product", True)
    return Operation(name, signatures, flops=flops_of_product(left), **more)


declare(
    _product("linear", "input, weight, bias=None", rows=linear),
    _product(
        "matmul",
        "input, other",
        synonyms=("bmm", "mm"),
        renamed={"mat2": "other"},
        rows=matmul,
    ),
    _product("addmm", "input, mat1, mat2, *, beta=1, alpha=1", left="mat1", rows=addmm),
    _product("baddbmm", "input, batch1, batch2, *, beta=1, alpha=1", left="batch1"),
    # einsum of one operand may be a view of it.
    Operation(
        "einsum", ("equation, *operands",), rows=einsum, flops=flops_of_einsum, product=True, aliases=("operands",)
    ),
    _product(
        "grouped_mm",
        "input, mat2, *, offs=None, bias=None, out_dtype=None",
        synonyms=("_grouped_mm", "transformers::grouped_mm_fallback"),
        renamed={"mat_a": "input", "mat_b": "mat2", "weight": "mat2"},
    ),
    Operation(
        "scaled_dot_product_attention",
        ("query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False",),
        rows=attention,
        resize=explicit_causal,
        flops=flops_of_attention,
        product=True,
        mixes_rows=True,
    ),
    Operation(
        "conv1d",
        ("input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1",),
        mixes_rows=True,
        traits=frozenset({Trait.CONVOLUTION}),
    ),
    Operation(
        KERNEL,
        (),
        synonyms=(f"*::{KERNEL}",),
        renamed={"q": "query", "k": "key", "v": "value", "softmax_scale": "scale", "causal": "is_causal"},
        rows=whole_package,
        flops=flops_by_package,
        product=True,
        mixes_rows=True,
        traits=frozenset({Trait.PARTS}),
    ),
    Operation(
        "flex_attention",
        (_FLEX,),
        synonyms=("higher_order::flex_attention",),
        rows=whole_flex,
        flops=flops_of_flex,
        product=True,
        mixes_rows=True,
        traits=frozenset({Trait.PARTS}),
    ),
)
_OPERANDS = "query, key, value, is_causal, scale, package, names, given, rows=None"
declare(
    Operation(
        "opskip::attend_by_package",
        (_OPERANDS,),
        rows=queries_along(1),
        resize=told_along(1),
        flops=flops_by_package,
        product=True,
        mixes_rows=True,
    ),
    functions=[attend_by_package],
)
declare(
    Operation(
        "opskip::attend_by_flex",
        (f"{_FLEX}, by_head=True, rows=None",),
        rows=queries_along(2),
        resize=told_along(2),
        flops=flops_of_flex,
        product=True,
        mixes_rows=True,
    ),
    functions=[attend_by_flex],
)
