"""Collectives as one operation each: what a model writes becomes it, and what is read in between does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed._functional_collectives as functional
from torch import Tensor, distributed

from opskip_compile.passes.analysis.exchanges import exchanged_in
from opskip_compile.passes.collectives import OF_ALL, SAME_ROWS
from opskip_compile.passes.graph.origin import Origin, set_origin
from opskip_compile.passes.normalize.cleanup import copy_graph
from opskip_compile.passes.normalize.collectives import drop_idle_checks, lift_collectives
from opskip_compile.passes.normalize.functionalize import write_out_of_place
from tests.helpers.graphs import capture, nodes_named, op_names

WORLD = "0"
started = torch.ops._c10d_functional.all_reduce.default
waits = torch.ops._c10d_functional.wait_tensor.default


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def in_place(x: Tensor) -> Tensor:
    y = x.relu()
    distributed.all_reduce(y)
    return y


def scattered(x: Tensor) -> Tensor:
    return functional.reduce_scatter_tensor(x, "sum", 0, distributed.group.WORLD)


def gathered(x: Tensor) -> Tensor:
    return functional.all_gather_tensor(x, 0, distributed.group.WORLD)


def late(x: Tensor) -> Tensor:
    """Something is computed while the sum is under way."""
    sums = started(x, "sum", WORLD)
    y = x.sin()
    return y + waits(sums)


def read_twice(x: Tensor) -> Tensor:
    sums = started(x, "sum", WORLD)
    return waits(sums) + waits(sums)


@pytest.mark.parametrize(
    ("fn", "lifted"),
    [(in_place, "all_reduce"), (scattered, "reduce_scatter"), (gathered, "all_gather"), (late, ""), (read_twice, "")],
)
def test_what_is_lifted(fn: Callable[[Tensor], Tensor], lifted: str) -> None:
    graph = copy_graph(capture(fn, torch.randn(3, 4)).graph)
    write_out_of_place(graph)
    assert lift_collectives(graph) == len(nodes_named(graph, f"opskip::{lifted}")) == bool(lifted)
    assert ("wait_tensor" in " ".join(op_names(graph))) == (not lifted)
    assert exchanged_in(graph.nodes) == ((WORLD,) if lifted else ())
    graph.lint()


def test_an_update_in_place_is_what_was_summed() -> None:
    graph = copy_graph(capture(in_place, torch.randn(3, 4)).graph)
    write_out_of_place(graph)
    lift_collectives(graph)
    assert op_names(graph) == ["relu", "opskip::all_reduce", "clone"]


def summed_cast(x: Tensor) -> Tensor:
    """As experts of transformers are: a cast that gives its operand itself."""
    y = x.relu().to(x.dtype)
    distributed.all_reduce(y)
    return y


def summed_wider(x: Tensor) -> Tensor:
    """The cast copies, so that its operand stays what it was."""
    z = x.relu()
    y = z.to(torch.float64)
    distributed.all_reduce(y)
    return y + z


def summed_and_read(x: Tensor) -> Tensor:
    """What the cast was of is read later, and is the sum by then."""
    z = x.relu()
    y = z.to(x.dtype)
    distributed.all_reduce(y)
    return y + z


def summed_input(x: Tensor) -> Tensor:
    y = x.to(x.dtype)
    distributed.all_reduce(y)
    return y


@pytest.mark.parametrize(
    ("fn", "written"), [(summed_cast, 1), (summed_wider, 1), (summed_and_read, 0), (summed_input, 0)]
)
def test_a_sum_into_a_cast(fn: Callable[[Tensor], Tensor], written: int) -> None:
    gm = capture(fn, torch.randn(3, 4))
    x, graph = torch.randn(3, 4), copy_graph(gm.graph)
    assert write_out_of_place(graph) == written
    graph.lint()
    got, want = torch.fx.GraphModule(gm, graph)(x.clone()), fn(x.clone())
    assert torch.equal(got[0] if isinstance(got, tuple) else got, want)


@pytest.mark.parametrize("kept", ["", "visual"])
@pytest.mark.parametrize("scores", [False, True])
def test_rows_are_compared_where_some_are_exchanged(kept: str, scores: bool) -> None:
    graph = copy_graph(capture(in_place, torch.randn(3, 4)).graph)
    write_out_of_place(graph)
    lift_collectives(graph)
    (summed,) = nodes_named(graph, "opskip::all_reduce")
    set_origin(summed, Origin(summed.name, dim=0, rows=kept))
    with graph.inserting_before(summed):
        mask = graph.call_function(SAME_ROWS, (summed.args[0], 0, WORLD))
        same = graph.call_method("sin", (graph.call_function(OF_ALL, (mask, True, WORLD)) if scores else mask,))
    assert drop_idle_checks(graph) == (not kept and not scores)
    assert same.all_input_nodes[0].target == (OF_ALL if scores else SAME_ROWS if kept else "relu")
