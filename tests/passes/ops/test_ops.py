"""One name per operation, what writes in place, and what shares memory with a written value."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from opskip_compile.passes.ops import is_inplace, mutated_nodes, op_name
from tests.helpers.graphs import capture, nodes_named

aten = torch.ops.aten
OTHER = object()  # stands for another input


@torch.library.custom_op("opskip_test::add", mutates_args=())
def custom_add(x: Tensor, y: Tensor) -> Tensor:
    return x + 2 * y


@torch.library.custom_op("opskip_test::store", mutates_args=("cache",))
def custom_store(x: Tensor, cache: Tensor) -> None:
    cache.copy_(x)


def add(x: Tensor, y: Tensor) -> Tensor:
    """A user's function of that name."""
    return x - y


def called(target: object, *rest: object, **kwargs: object) -> fx.Node:
    """One call of ``target`` on a fresh input."""
    graph = fx.Graph()
    x, other = graph.placeholder("x"), graph.placeholder("other")
    make = graph.call_method if isinstance(target, str) else graph.call_function
    rest = tuple(other if value is OTHER else value for value in rest)
    kwargs = {name: other if value is OTHER else value for name, value in kwargs.items()}
    return make(target, (x, *rest), kwargs)  # type: ignore[arg-type,operator]


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        (
            "add",
            [operator.add, torch.add, "add", aten.add.Tensor, aten.add, operator.iadd, "add_", "__add__"],
        ),
        ("mul", [operator.mul, torch.mul, torch.multiply, "mul", "multiply", aten.mul.Scalar, "mul_"]),
        ("div", [operator.truediv, torch.div, torch.true_divide, "divide", "div_"]),
        ("and", [operator.and_, "__and__", torch.logical_and, torch.bitwise_and, operator.iand]),
        ("or", [operator.or_, "__or__", "logical_or", aten.bitwise_or.Tensor]),
        ("matmul", [operator.matmul, torch.matmul, torch.bmm, "mm", aten.bmm.default]),
        ("softmax", [F.softmax, torch.softmax, "softmax", aten._softmax.default]),
        ("sigmoid", [torch.sigmoid, F.sigmoid, torch.special.expit]),
        ("cat", [torch.cat, torch.concat, torch.concatenate]),
        ("getitem", [operator.getitem, "__getitem__"]),
        ("linear", [F.linear, aten.linear.default]),
        ("scaled_dot_product_attention", [F.scaled_dot_product_attention]),
        ("log_sigmoid", [F.logsigmoid]),
        ("positive", [operator.pos, torch.positive]),
        ("setitem", [operator.setitem, "__setitem__"]),
        (None, [add, torch.ops.opskip_test.add.default, torch.ops.opskip_test.add]),
    ],
)
def test_spellings_have_one_name(name: str | None, spellings: list[Any]) -> None:
    assert {str(target): op_name(called(target)) for target in spellings} == {str(t): name for t in spellings}


def test_attribute_is_named_after_itself() -> None:
    assert op_name(called(getattr, "mT")) == "mT"


def test_inputs_have_no_name() -> None:
    node = fx.Graph().placeholder("add")
    assert op_name(node) is None
    assert not is_inplace(node)


@pytest.mark.parametrize(
    ("target", "rest", "kwargs", "expected"),
    [
        ("add", (1,), {}, False),
        ("add_", (1,), {}, True),
        ("__and__", (1,), {}, False),
        ("__setitem__", (0, 1), {}, True),
        (operator.add, (1,), {}, False),
        (operator.iadd, (1,), {}, True),
        (operator.imatmul, (1,), {}, False),
        (operator.iand, (1,), {}, True),
        (operator.ior, (1,), {}, True),
        (operator.setitem, (0, 1), {}, True),
        (operator.and_, (1,), {}, False),
        (operator.or_, (1,), {}, False),
        (operator.invert, (), {}, False),
        (torch.relu, (), {}, False),
        (torch.relu_, (), {}, True),
        (F.silu, (), {}, False),
        (F.silu, (), {"inplace": True}, True),
        (F.silu, (), {"inplace": False}, False),
        (torch.mul, (2,), {"out": OTHER}, True),
        (aten.add.Tensor, (1,), {}, False),
        (aten.add_.Tensor, (1,), {}, True),
        (aten.mul.out, (1,), {"out": OTHER}, True),
        (aten.add, (1,), {}, False),
        (torch.ops.opskip_test.add.default, (1,), {}, False),
        (torch.ops.opskip_test.add, (1,), {}, False),
        (torch.ops.opskip_test.store.default, (OTHER,), {}, True),
        (torch.ops.opskip_test.store, (OTHER,), {}, True),
    ],
)
def test_inplace(target: Any, rest: tuple[Any, ...], kwargs: dict[str, Any], expected: bool) -> None:
    assert is_inplace(called(target, *rest, **kwargs)) is expected


def through_view(x: Tensor) -> Tensor:
    y = x.sin()
    y.view(-1).unsqueeze(0).transpose(0, 1).add_(1)
    return y.cos()


def through_slice(x: Tensor) -> Tensor:
    y = x.sin()
    y[:, 1] = 0
    return y.cos()


def through_part(x: Tensor) -> Tensor:
    y = x.sin()
    torch.split(y, 2, -1)[1].relu_()
    return y.cos()


def through_tensor_split(x: Tensor) -> Tensor:
    y = x.sin()
    y.tensor_split(2, -1)[1].relu_()
    return y.cos()


def through_cast(x: Tensor) -> Tensor:
    y = x.sin()
    y.float().mul_(2)
    return y.cos()


def through_keyword(x: Tensor) -> Tensor:
    y = x.sin()
    F.silu(input=y, inplace=True)
    return y.cos()


def through_out(x: Tensor) -> Tensor:
    y = x.sin()
    torch.mul(x, 2, out=y)
    return y.cos()


def through_unknown(x: Tensor) -> Tensor:
    y = x.sin()
    torch.einsum("bsw->bws", y).add_(1)
    return y.cos()


def through_custom(x: Tensor) -> Tensor:
    y = x.sin()
    torch.ops.opskip_test.store(x, y)
    return y.cos()


def through_list(x: Tensor) -> Tensor:
    y = x.sin()
    torch._foreach_add_([y], 1)
    return y.cos()


def of_a_copy(x: Tensor) -> Tensor:
    y = x.sin()
    y.clone().add_(1)
    return y.cos()


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        *((fn, {"sin"}) for fn in (through_view, through_slice, through_part, through_tensor_split, through_cast)),
        *((fn, {"sin"}) for fn in (through_keyword, through_out, through_unknown, through_list, through_custom)),
        (of_a_copy, set()),
    ],
)
def test_written_values_and_their_aliases(fn: Callable[[Tensor], Tensor], expected: set[str]) -> None:
    graph = capture(fn, torch.rand(2, 3, 4)).graph
    mutated = mutated_nodes(graph)
    assert nodes_named(graph, "cos")[0] not in mutated
    found = {op_name(n) for n in mutated if op_name(n) in ("sin", "cos")}
    found |= {"input" for n in mutated if n.op == "placeholder"}
    assert found == expected


def test_values_that_read_one_size_share_no_memory() -> None:
    """With dynamic shapes every view of a graph reads the same number."""

    def views(x: Tensor, buffer: Tensor) -> Tensor:
        buffer.view(x.shape[1], 4).add_(1)
        return x.sin().view(2, x.shape[1], 2, 2).cos()

    graph = capture(views, torch.rand(2, 3, 4), torch.rand(12), dynamic=True).graph
    mutated = mutated_nodes(graph)
    assert any(
        node.op == "placeholder" and isinstance(node.meta["example_value"], torch.SymInt) for node in graph.nodes
    )
    assert [op_name(node) for node in mutated if node.op != "placeholder"].count("view") == 1
    assert not mutated & {*nodes_named(graph, "sin"), *nodes_named(graph, "cos")}
