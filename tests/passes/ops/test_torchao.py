"""The weights of torchao: rows move above their products where every row is quantised by itself, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.graphs import assert_rows, push
from tests.passes.ops.test_rules import VISUAL

q = pytest.importorskip("torchao.quantization")
workflows = pytest.importorskip("torchao.quantization.quantize_.workflows")
inference = pytest.importorskip("torchao.float8.inference")

ROW, TENSOR, GROUP = q.PerRow(), q.PerTensor(), q.PerGroup(32)
OF_ALL = " goes over all rows, and all read its result; with one scale for each row"
FIXED = torch.full((1, 1, 1), 0.4)
DYNAMIC, STATIC = q.Int8DynamicActivationInt8WeightConfig, q.Int8StaticActivationInt8WeightConfig


def by(config: Any) -> Callable[[nn.Module], None]:
    return lambda model: q.quantize_(model, config)


def in_float8(granularity: Any) -> Callable[[nn.Module], None]:
    """What the configuration makes on a GPU; it refuses a CPU."""

    def quantise(model: nn.Module) -> None:
        how = workflows.QuantizeTensorToFloat8Kwargs(granularity=granularity)
        data = model.get_parameter("0.weight").data
        mm = inference.Float8MMConfig(use_fast_accum=False)
        weight = workflows.Float8Tensor.from_hp(data, granularity=granularity, mm_config=mm, act_quant_kwargs=how)
        model.get_submodule("0").weight = nn.Parameter(weight, requires_grad=False)

    return quantise


WAYS: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "int8": (by(q.Int8WeightOnlyConfig()), ""),
    "int8 in groups": (by(q.Int8WeightOnlyConfig(granularity=GROUP)), ""),
    "int4": (by(q.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=GROUP)), ""),
    "float8": (by(q.Float8WeightOnlyConfig()), ""),
    "int8 by row": (by(DYNAMIC()), ""),
    "int8 by row, asymmetric": (by(DYNAMIC(act_mapping_type=q.MappingType.ASYMMETRIC)), ""),
    "int8 by tensor": (by(DYNAMIC(granularity=[TENSOR, ROW])), OF_ALL),
    "int8 by a fixed scale": (by(STATIC(act_quant_scale=FIXED, granularity=[TENSOR, ROW])), ""),
    "int4, int8 by row": (by(q.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4)), ""),
    "float8 by row": (in_float8(ROW), ""),
    "float8 by tensor": (in_float8(TENSOR), OF_ALL),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", WAYS)
def test_rows_of_a_quantised_product(name: str, batch: int, bias: bool) -> None:
    """With one scale for all rows, the rows that are left out would change those that are kept."""
    quantise, reason = WAYS[name]
    torch.manual_seed(0)
    dtype = torch.bfloat16 if name.startswith("float8 by") else torch.float32
    model = nn.Sequential(nn.Linear(64, 32, bias=bias, dtype=dtype)).requires_grad_(False)
    quantise(model)
    x = (torch.randn(batch, 7, 64) * (1 + 20 * VISUAL[:batch, :, None])).to(dtype)
    weights = [model.get_parameter("0.weight"), *([model.get_parameter("0.bias")] if bias else [])]

    def linear(x: Tensor, *weights: Tensor) -> Tensor:
        return F.linear(x, *weights)

    full = linear(x, *weights)
    done = push(linear, VISUAL[:batch], x, *weights, dim=1)
    assert_rows(done.result, full, VISUAL[:batch], tolerance=1e-5 if dtype == torch.float32 else 1e-2)
    assert done.selected == (["linear"] if reason else ["input"])
    assert [reason in stop.reason for stop in done.stops] == [True] * bool(reason)
    if reason:  # so it would have been wrong
        alone, kept = linear(x[:1, ~VISUAL[0]], *weights), full[:1, ~VISUAL[0]]
        assert (alone - kept).abs().max() > 0.01 * kept.abs().max()
