"""The operators of bitsandbytes: rows move above 4-bit weights and int8 by row, not above a search for outliers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opskip_compile.passes.ops import op_name, products, rows_of
from opskip_compile.passes.refusal import Refusal
from tests.helpers.graphs import assert_rows, push
from tests.helpers.rule_cases import flat
from tests.passes.ops.test_rules import VISUAL

bnb = pytest.importorskip("bitsandbytes")
OPS = torch.ops.bitsandbytes
WIDTH, OUT = 64, 32


def in_int8(x: Tensor, w: Tensor, columns: Tensor) -> Tensor:
    rows, scales, _ = OPS.int8_vectorwise_quant(flat(x).half(), 0.0)
    return OPS.int8_scaled_mm(rows, w, scales, columns, dtype=torch.float32)


def products_of_int8(x: Tensor, w: Tensor) -> Tensor:
    return OPS.int8_linear_matmul((9 * x).to(torch.int8), w)


def given() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, 7, WIDTH), torch.randint(-99, 99, (OUT, WIDTH), dtype=torch.int8), torch.rand(OUT) + 0.5


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_move_above_weights_of_4_bits(batch: int) -> None:
    torch.manual_seed(0)
    x, (packed, state) = torch.randn(batch, 7, WIDTH), bnb.functional.quantize_4bit(torch.randn(OUT, WIDTH))

    def product(x: Tensor, packed: Tensor, absmax: Tensor) -> Tensor:
        return OPS.gemm_4bit(x, packed, [OUT, WIDTH], absmax, state.blocksize, state.quant_type)

    done = push(product, VISUAL[:batch], x, packed, state.absmax, dim=1)
    assert done.stops == [] and done.selected == ["input"]
    assert_rows(done.result, product(x, packed, state.absmax), VISUAL[:batch], tolerance=1e-5)
    features = push(lambda *given: product(*given)[..., :7].mT, VISUAL[:batch], x, packed, state.absmax, dim=1)
    assert features.stops != []


def test_rows_move_above_int8_by_row() -> None:
    x, w, columns = given()
    done = push(in_int8, VISUAL[:1], x, w, columns, dim=0)
    assert done.stops == [] and done.selected == ["input"]
    assert_rows(done.result, in_int8(x, w, columns), VISUAL[:1], dim=0, tolerance=1e-4)
    done = push(products_of_int8, VISUAL[:1], x, w, dim=1)
    assert done.stops == [] and done.selected == ["input"]
    assert_rows(done.result, products_of_int8(x, w), VISUAL[:1])


def test_rows_stay_below_a_search_for_outliers_in_all_of_them() -> None:
    graph = torch.fx.Graph()
    x, w, columns = (graph.placeholder(name) for name in ("x", "w", "columns"))
    parts = graph.call_function(OPS.int8_vectorwise_quant.default, (x, 6.0))
    rows, scales, found = (graph.call_function(torch.ops.aten.alias, (parts,)) for _ in range(3))
    node = graph.call_function(OPS.int8_mixed_scaled_mm.default, (x, rows, w, scales, columns, found))
    for each in (x, rows):
        each.meta["example_value"] = torch.randn(7, WIDTH)
    for each in (parts, node):
        refusal = rows_of(each, 0)
        assert isinstance(refusal, Refusal)
        assert "it looks for outliers in the columns of all rows" in refusal.reason
    assert op_name(node) in products()
