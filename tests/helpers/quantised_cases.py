"""The part of `rule_cases` and `rule_refusals` about products with quantised weights, in torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.helpers.rule_cases import NOTHING, ONE, THREE, Case, flat

FLOAT8 = torch.float8_e4m3fn
FEATURES = "the rows are the output features"
aten = torch.ops.aten


def int8(x: Tensor) -> Tensor:
    return (9 * x).to(torch.int8)


def wide(x: Tensor) -> Tensor:
    """64 features for 8."""
    return flat(x).repeat_interleave(8, dim=-1)


def scaled(x: Tensor, w: Tensor) -> Tensor:
    """In float8 with a scale for each row."""
    rows = flat(x)
    scale, columns = rows.amax(-1, keepdim=True), w[:, 0][None].clone()
    return torch._scaled_mm((rows / scale).to(FLOAT8), w.to(FLOAT8).t(), scale, columns, out_dtype=torch.float32)


def scaled_for_all(x: Tensor, w: Tensor) -> Tensor:
    """With one scale, which does not depend on what is multiplied by it."""
    rows = flat(x)
    return torch._scaled_mm(rows.to(FLOAT8), w.to(FLOAT8).t(), w[0, 0], w[0, 1], out_dtype=torch.float32)


def int4(x: Tensor, w: Tensor) -> Tensor:
    """``w``: whole numbers from 0 to 6, (8, 8)."""
    packed = aten._convert_weight_to_int4pack_for_cpu(w.repeat(4, 8).to(torch.int32), 1)
    return aten._weight_int4pack_mm_for_cpu(wide(x), packed, 32, torch.ones(2, 32, 2))


def int4_and_int8(x: Tensor, w: Tensor) -> Tensor:
    """The same weights; activations are quantised inside."""
    packed = aten._dyn_quant_pack_4bit_weight(w.repeat(4, 4).to(torch.uint8), torch.ones(32, 1), None, 64, 64, 32)
    return aten._dyn_quant_matmul_4bit(wide(x), packed, 64, 64, 32)


def cast(x: Tensor) -> Tensor:
    return aten._to_copy(x, dtype=torch.float64)


PUSHED = (
    Case("_int_mm", lambda x, w: torch._int_mm(int8(flat(x)), int8(w)), "BSW WK", 0, ONE),
    Case("_scaled_mm amax", scaled, "BSW KW", 0, ONE),
    Case("_scaled_mm", scaled_for_all, "BSW KW", 0, ONE),
    Case("_weight_int8pack_mm", lambda x, w, s: torch._weight_int8pack_mm(flat(x), int8(w), s), "BSW KW K", 0, ONE),
    Case("_weight_int4pack_mm", int4, "BSW i:WW", 0, ONE),
    Case("_dyn_quant_matmul_4bit", int4_and_int8, "BSW i:WW", 0, ONE),
    Case("_to_copy", cast),
)


def square(x: Tensor, w: Tensor) -> Tensor:
    return torch._int_mm(int8(flat(x)), int8(w))


DECLINED = (
    Case("_int_mm", square, "BSW WS", 1, ONE, FEATURES),
    Case("_scaled_mm", scaled, "BSW SW", 1, ONE, FEATURES),
    Case(
        "_weight_int8pack_mm",
        lambda x, w, s: torch._weight_int8pack_mm(flat(x), int8(w), s),
        "BSW SW S",
        1,
        ONE,
        FEATURES,
    ),
    Case("_weight_int4pack_mm", int4, "BSW i:WW", 1, ONE, FEATURES),
    Case("_dyn_quant_matmul_4bit", int4_and_int8, "BSW i:WW", 1, ONE, FEATURES),
    Case("_to_copy", cast, "1SW", reason=NOTHING, batches=THREE),
)
