"""Tensor subclasses as weights: what they do to activations decides whether rows may be left out before them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opskip_compile.passes.ops.subclasses import mixing_subclass
from tests.helpers.graphs import push
from tests.passes.ops.test_rules import VISUAL


class PerRow:
    dim = -1


class PerTensor:
    pass


class Quantised(Tensor):
    """A weight that says, or does not, how its products quantise what it is multiplied with."""

    def __new__(cls, data: Tensor, how: object) -> Quantised:
        return Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)

    def __init__(self, data: Tensor, how: object) -> None:
        self.data_, self.how = data, how
        if how != "silent":
            self.act_quant_kwargs = how

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["data_"], self.how

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], how: Any, size: Any, stride: Any) -> Quantised:
        return Quantised(inner["data_"], how)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(function)


def test_what_a_subclass_does_not_tell_it_is_not_trusted_with() -> None:
    data = torch.randn(5, 8)
    assert mixing_subclass(None) == mixing_subclass(data) == mixing_subclass(Quantised(data, None)) == ""
    assert mixing_subclass(Quantised(data, SimpleNamespace(granularity=PerRow()))) == ""
    across = PerRow()
    across.dim = 0
    for how in (PerTensor(), across):
        assert "not each row alone" in mixing_subclass(Quantised(data, SimpleNamespace(granularity=how)))
    assert "does not say" in mixing_subclass(Quantised(data, "silent"))


@pytest.mark.parametrize("config", ["weights", "by row", "by tensor"])
def test_quantised_linear(config: str) -> None:
    """With one scale for all rows, the rows that are left out would change those that are kept."""
    quantization = pytest.importorskip("torchao.quantization")
    granularity = [quantization.PerTensor(), quantization.PerRow()]
    how = {
        "weights": quantization.Int8WeightOnlyConfig(),
        "by row": quantization.Int8DynamicActivationInt8WeightConfig(),
        "by tensor": quantization.Int8DynamicActivationInt8WeightConfig(granularity=granularity),
    }[config]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 5, bias=False))
    quantization.quantize_(model, how)
    x = torch.randn(1, 7, 8) * torch.arange(1, 8)[None, :, None] ** 2
    weight = model[0].weight
    done = push(lambda x, w: torch.nn.functional.linear(x, w), VISUAL[:1], x, weight, dim=1)
    full = torch.nn.functional.linear(x, weight)
    assert torch.allclose(done.result, full[:, ~VISUAL[0]], rtol=1e-5)
    assert [stop.operation for stop in done.stops] == (["linear"] if config == "by tensor" else [])
    assert all("PerTensor" in stop.reason for stop in done.stops)
