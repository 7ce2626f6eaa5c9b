"""The product of optimum-quanto: an operator of its own, and weights that call it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.graphs import assert_rows, push
from tests.passes.ops.test_rules import VISUAL

quanto = pytest.importorskip("optimum.quanto")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("weights", ["qint8", "qfloat8"])
def test_rows_move_above_the_product(weights: str, batch: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    quanto.quantize(model, weights=getattr(quanto, weights))
    quanto.freeze(model)
    x, weight = torch.randn(batch, 7, 64), model.get_parameter("0.weight").detach()

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    done = push(product, VISUAL[:batch], x, weight, dim=1)
    assert done.stops == [] and done.selected == ["input"]
    assert_rows(done.result, product(x, weight), VISUAL[:batch], tolerance=1e-5)


def test_rows_stay_below_where_they_are_features() -> None:
    x, w, scales = torch.randn(1, 7, 64), torch.randint(-9, 9, (7, 64), dtype=torch.int8), torch.ones(7, 1)
    done = push(lambda x, w, s: torch.ops.quanto.qbytes_mm(x, w, s), VISUAL[:1], x, w, scales, dim=2)
    assert [stop.reason for stop in done.stops] == ["the rows are the output features"]
