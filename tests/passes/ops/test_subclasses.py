"""Tensor subclasses as weights: what they do to activations decides whether rows may be left out before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from opskip_compile.passes.ops import rows_of, subclasses
from opskip_compile.passes.refusal import Refusal, Why
from tests.helpers.graphs import Pushed, assert_rows, push
from tests.passes.ops.test_rules import VISUAL

Product = Callable[[Tensor, Tensor], Tensor]


def by_row(x: Tensor, w: Tensor) -> Tensor:
    """One scale for each row, over its own features."""
    scale = x.abs().amax(-1, keepdim=True) / 7
    return ((x / scale).round() @ w.t()) * scale


def by_row_flat(x: Tensor, w: Tensor) -> Tensor:
    """The same of rows in one dimension, and in place."""
    flat = x.reshape(-1, x.shape[-1])
    scale = flat.abs().amax(1) / 7
    out = torch.mm((flat / scale[:, None]).round(), w.t())
    out.mul_(scale[:, None])
    return out.reshape(*x.shape[:-1], w.shape[0])


def in_parts(x: Tensor, w: Tensor) -> Tensor:
    """Two scales for each row."""
    halves = x.unflatten(-1, (2, -1))
    scale = halves.abs().amax(-1, keepdim=True) / 7
    return ((halves / scale).round() * scale).flatten(-2) @ w.t()


def given(x: Tensor, w: Tensor) -> Tensor:
    """One scale that was chosen beforehand."""
    return (x / 0.25).round() @ w.t() * 0.25


def by_tensor(x: Tensor, w: Tensor) -> Tensor:
    """One scale for all rows."""
    scale = x.abs().amax() / 7
    return ((x / scale).round() @ w.t()) * scale


def by_column(x: Tensor, w: Tensor) -> Tensor:
    """A scale for each feature, over the rows of an element."""
    scale = x.abs().amax(1, keepdim=True) / 7
    return ((x / scale).round() * scale) @ w.t()


def outliers(x: Tensor, w: Tensor) -> Tensor:
    """Features that are large in any row are left as they are."""
    large = (x.abs() > 2).flatten(0, -2).any(0)
    return torch.where(large, x, x.round()) @ w.t()


def in_place_for_all(x: Tensor, w: Tensor) -> Tensor:
    """What all rows read is written through a view, where no argument shows it."""
    scale = torch.ones_like(x[..., :1])
    scale.view(-1).copy_(x.abs().amax().expand(scale.numel()))
    return ((x / scale).round() @ w.t()) * scale


def by_place(x: Tensor, w: Tensor) -> Tensor:
    """A scale for each place in the sequence."""
    return (x * torch.arange(1, 1 + x.shape[1])[:, None]) @ w.t()


def of_neighbours(x: Tensor, w: Tensor) -> Tensor:
    """A row reads the one before."""
    return (x + x.roll(1, -2)) @ w.t()


def of_other_rows(x: Tensor, w: Tensor) -> Tensor:
    """The rows in another order."""
    return x.transpose(0, 1).reshape(x.shape) @ w.t()


def random(x: Tensor, w: Tensor) -> Tensor:
    """Stochastic rounding: one stream of numbers for all rows."""
    return (x + torch.rand_like(x)).floor() @ w.t()


def of_one_size(x: Tensor, w: Tensor) -> Tensor:
    """A kernel for one length."""
    if x.shape[1] != 7:
        raise NotImplementedError("made for 7 rows")
    return x @ w.t()


ALONE = (by_row, by_row_flat, in_parts, given)
ALL = "goes over all rows, and all read its result; with one scale for each row"
COUPLED = {
    by_tensor: f"amax {ALL}",
    by_column: f"amax {ALL}",
    outliers: f"any {ALL}",
    in_place_for_all: "view: the view splits or merges the rows",
    by_place: "arange: no rule for arange",
    of_neighbours: "roll: it moves the rows",
    of_other_rows: "the rows of its result are not those of its operand, in their order",
    random: "rand_like: no rule for rand_like",
    of_one_size: "its product can't be traced (NotImplementedError: made for 7 rows)",
}


class Quantised(Tensor):
    """A weight that multiplies in a way of its own, by a function of plain tensors."""

    def __new__(cls, data: Tensor, how: Product) -> Quantised:
        return Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)

    def __init__(self, data: Tensor, how: Product) -> None:
        self.data_, self.how = data, how

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["data_"], self.how

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], how: Any, size: Any, stride: Any) -> Quantised:
        return Quantised(inner["data_"], how)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return Quantised(args[0].data_, args[0].how)
        if function is torch.ops.aten.t.default:
            return Quantised(args[0].data_.t(), args[0].how)
        assert function is torch.ops.aten.linear.default, function
        x, weight, *_ = args
        return weight.how(x, weight.data_)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.linear:  # before it is composed of others
            return args[1].how(args[0], args[1].data_)
        return super().__torch_function__(function, types, args, kwargs or {})


def linear(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w)


def pushed(how: Product, batch: int) -> tuple[Pushed, Tensor]:
    torch.manual_seed(0)
    x, data = torch.randn(batch, 7, 8) * torch.arange(1, 8)[:, None], torch.randn(5, 8)
    weight = Quantised(data, how)
    with mock.patch.object(subclasses, "_KNOWN", []):
        return push(linear, VISUAL[:batch], x, weight, dim=1), linear(x, weight)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("how", ALONE, ids=lambda how: how.__name__)
def test_rows_move_above_a_product_that_treats_each_alone(how: Product, batch: int) -> None:
    done, full = pushed(how, batch)
    assert done.stops == []
    assert done.selected == ["input"]
    assert_rows(done.result, full, VISUAL[:batch])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("how", COUPLED, ids=lambda how: how.__name__)
def test_rows_stay_below_a_product_that_couples_them(how: Product, batch: int) -> None:
    done, full = pushed(how, batch)
    (stop,) = done.stops
    assert stop.operation == "linear" and stop.why is Why.SUBCLASS
    assert "an operand is of type Quantised: " in stop.reason and COUPLED[how] in stop.reason
    if how is not random:
        assert_rows(done.result, full, VISUAL[:batch])


def test_a_product_is_looked_into_once_for_all_weights_alike() -> None:
    x, how = torch.randn(1, 7, 8), by_row
    with (
        mock.patch.object(subclasses, "_KNOWN", []),
        mock.patch.object(subclasses, "operations_inside", wraps=subclasses.operations_inside) as traced,
    ):
        for seed, other in ((0, how), (1, how), (2, by_tensor), (3, how), (4, by_tensor)):
            torch.manual_seed(seed)
            done = push(linear, VISUAL[:1], x, Quantised(torch.randn(5, 8), other), dim=1)
            assert bool(done.stops) is (other is by_tensor)
    assert traced.call_count == 2


@pytest.mark.parametrize("operation", [torch.add, torch.matmul])
def test_other_operations_with_a_subclass_are_not_looked_into(operation: Any) -> None:
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    x.meta["example_value"], weight.meta["example_value"] = torch.randn(3, 7, 5), Quantised(torch.randn(7, 5), by_row)
    args = (x, weight) if operation is torch.add else (weight, x)
    node = graph.call_function(operation, args)
    node.meta["example_value"] = torch.randn(3, 7, 5)
    refusal = rows_of(node, 1)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "an operand is of type Quantised, and only its products are looked into"
