"""Shapes of a region are traced once for each form of its operands, and again whenever something is another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from opskip_compile._compat import REGION, invoke_region
from opskip_compile._compat.regions import remember_shapes


@pytest.fixture(autouse=True)
def remembering() -> Iterator[None]:
    with remember_shapes:
        yield


class Counting(fx.GraphModule):
    """A region that counts how often it is traced."""

    traced = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.traced += 1
        return super().__call__(*args, **kwargs)


def region(function: Callable[..., Any]) -> Counting:
    return Counting({}, fx.symbolic_trace(function).graph)


def two(x: Tensor, w: Tensor) -> Any:
    return (x @ w.t(), x.relu())


def a_view(x: Tensor, w: Tensor) -> Any:
    return (x.view(-1), w * 2)


def a_size_of_its_own(x: Tensor, w: Tensor) -> Any:
    return (x.nonzero(), w * 2)


@pytest.fixture
def mode() -> FakeTensorMode:
    return FakeTensorMode(shape_env=ShapeEnv(allow_dynamic_output_shape_ops=True), allow_non_fake_inputs=True)


def operands(mode: FakeTensorMode, rows: int | torch.SymInt, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    with mode:
        return torch.empty(1, rows, 8, dtype=dtype), torch.empty(4, 8, dtype=dtype)


def rows_known_later(mode: FakeTensorMode) -> torch.SymInt:
    size: torch.SymInt = mode.shape_env.create_unbacked_symint()  # type: ignore[union-attr]
    torch._check(size >= 2)
    return size


def call(mode: FakeTensorMode, module: fx.GraphModule, *given: Any, name: str = f"{REGION}0") -> Any:
    with mode, torch.no_grad():
        return invoke_region(module, name, *given)


def test_same_form(mode: FakeTensorMode) -> None:
    module, rows = region(two), rows_known_later(mode)
    first = call(mode, module, *operands(mode, rows))
    again = call(mode, module, *operands(mode, rows))
    assert module.traced == 1
    assert type(first) is type(again)
    for a, b in zip(first, again, strict=True):
        assert a is not b
        assert (str(a.shape), str(a.stride()), a.dtype, a.device) == (str(b.shape), str(b.stride()), b.dtype, b.device)
    assert again[0].shape[1].node.expr == rows.node.expr


def test_another_form(mode: FakeTensorMode) -> None:
    module, rows = region(two), rows_known_later(mode)
    call(mode, module, *operands(mode, rows))
    other = rows_known_later(mode)
    assert call(mode, module, *operands(mode, other))[0].shape[1].node.expr == other.node.expr
    assert call(mode, module, *operands(mode, other, torch.float64))[0].dtype == torch.float64
    x, w = operands(mode, rows)
    with mode:
        turned = w.t().contiguous().t()
    call(mode, module, x, turned)
    assert module.traced == 4


def test_symbols_of_another_graph(mode: FakeTensorMode) -> None:
    module, rows = region(two), rows_known_later(mode)
    call(mode, module, *operands(mode, rows))
    later = FakeTensorMode(shape_env=ShapeEnv(allow_dynamic_output_shape_ops=True), allow_non_fake_inputs=True)
    same_name = rows_known_later(later)
    assert same_name.node.expr == rows.node.expr
    result = call(later, module, *operands(later, same_name))
    assert module.traced == 2
    assert result[0].shape[1].node.shape_env is later.shape_env


def test_another_graph(mode: FakeTensorMode) -> None:
    module, rows = region(two), rows_known_later(mode)
    call(mode, module, *operands(mode, rows))
    output = module.graph.output_node()
    product, relu = output.args[0]  # type: ignore[misc]
    output.args = ((relu, product),)
    module.recompile()
    assert call(mode, module, *operands(mode, rows))[0].shape[-1] == 8


@pytest.mark.parametrize(
    ("function", "name"), [(a_view, f"{REGION}0"), (a_size_of_its_own, f"{REGION}0"), (two, "region_of_a_user")]
)
def test_what_is_traced_every_time(mode: FakeTensorMode, function: Callable[..., Any], name: str) -> None:
    module, rows = region(function), rows_known_later(mode)
    found = [str(call(mode, module, *operands(mode, rows), name=name)[0].shape) for _ in range(3)]
    assert module.traced == 3
    assert len({*found}) == (3 if function is a_size_of_its_own else 1)
