"""Sums of flattened streams: written as sums of the streams, bitwise; left alone where that is not the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from opskip_compile.passes.analysis.match import match_operators
from opskip_compile.passes.normalize.unflatten import add_unflattened
from tests.helpers.graphs import capture, nodes_named

X, W = torch.randn(2, 5, 8), torch.randn(8, 8)


def ffn(x: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(x, W)), W)


def plain(x: Tensor) -> Tensor:
    """As OPT has it."""
    sizes = x.shape
    flat = x.reshape(-1, x.size(-1))
    return (flat + ffn(flat)).view(sizes)


def branch_first(x: Tensor) -> Tensor:
    flat = x.flatten(0, 1)
    return (ffn(flat) + flat).reshape(x.shape)


def read_twice(x: Tensor) -> Tensor:
    flat = x.reshape(-1, 8)
    total = flat + ffn(flat)
    return total.view(2, 5, 8) + total.sum()


def broadcast(x: Tensor) -> Tensor:
    flat = x.reshape(-1, 8)
    return (flat + ffn(flat).mean(0, keepdim=True)).view(2, 5, 8)


def promoted(x: Tensor) -> Tensor:
    flat = x.reshape(-1, 8)
    return (flat + ffn(flat).double()).view(2, 5, 8)


def scaled(x: Tensor) -> Tensor:
    flat = x.reshape(-1, 8)
    return torch.add(flat, ffn(flat), alpha=2).view(2, 5, 8)


def other_shape(x: Tensor) -> Tensor:
    flat = x.reshape(-1, 8)
    return (flat + ffn(flat)).view(5, 2, 8)


def written(x: Tensor) -> Tensor:
    x = x.clone()
    flat = x.reshape(-1, 8)
    branch = ffn(flat)
    x[:, 0] = 0
    return (flat + branch).view(2, 5, 8)


def layer(operator: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def fn(x: Tensor) -> Tensor:
        x = x.sin()
        x = x + F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]).flatten(1, 2)
        return F.rms_norm(operator(x), (8,))

    return fn


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("operator", [plain, branch_first])
def test_the_operator_is_found(operator: Callable[[Tensor], Tensor], dynamic: bool) -> None:
    gm = capture(layer(operator), X, dynamic=dynamic)
    assert len(match_operators(nodes_named(gm.graph, "sin")[0]).operators) == 1
    assert add_unflattened(gm.graph) == 1
    gm.graph.lint()
    found = match_operators(nodes_named(gm.graph, "sin")[0]).operators
    assert [op.name for op in found] == ["0.attention", "0.ffn"]


@pytest.mark.parametrize("operator", [plain, branch_first])
def test_the_numbers_stay(operator: Callable[[Tensor], Tensor]) -> None:
    gm = capture(operator, X)
    values = [X if node.name.startswith("l_x") else W for node in gm.graph.find_nodes(op="placeholder")]
    assert add_unflattened(gm.graph) == 1
    assert torch.equal(fx.GraphModule(gm, gm.graph)(*values)[0], operator(X))


@pytest.mark.parametrize("operator", [read_twice, broadcast, promoted, scaled, other_shape, written])
def test_left_alone(operator: Callable[[Tensor], Tensor]) -> None:
    assert add_unflattened(capture(operator, X).graph) == 0
