"""Small graphs as Dynamo captures them, and one pushdown over them.

A test hands over a plain function; Dynamo traces it with every spelling intact, the graph is changed inside the
backend, and the changed graph runs on the very arguments that Dynamo guards on. So symbolic sizes work as in a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

from opskip_compile.passes.normalize.cleanup import copy_graph, remove_dead
from opskip_compile.passes.normalize.functionalize import write_out_of_place
from opskip_compile.passes.ops import declare, op_name
from opskip_compile.passes.ops.families import plain
from opskip_compile.passes.refusal import Refusal
from opskip_compile.passes.rewrite.pushdown import Pushdown
from opskip_compile.passes.rewrite.selection import RowSet, is_selection
from opskip_compile.passes.runtime import KEPT_ROWS, select_rows

Change = Callable[[fx.GraphModule], fx.Graph | None]


def run_changed(fn: Callable[..., Any], *inputs: Tensor, change: Change, dynamic: bool | None = None) -> Any:
    """Run ``fn`` compiled as one graph; ``change`` gives the graph to run instead, or None to run it as it is."""

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        graph = change(gm)
        return gm.forward if graph is None else fx.GraphModule(gm, graph).forward

    torch._dynamo.reset()
    # Dynamo times its guards after flushing the processor's cache: two thirds of a small graph's compile time.
    with mock.patch("torch._dynamo.guards.profile_guard_manager", lambda *_: 0.0, create=True):
        return torch.compile(fn, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)


def capture(fn: Callable[..., Any], *inputs: Tensor, dynamic: bool | None = None) -> fx.GraphModule:
    """The one graph of ``fn``."""
    kept: list[fx.GraphModule] = []
    run_changed(fn, *inputs, change=kept.append, dynamic=dynamic)  # type: ignore[func-returns-value,arg-type]
    return kept[0]


def nodes_named(graph: fx.Graph, name: str) -> list[fx.Node]:
    """Every node whose canonical operation is ``name``."""
    return [node for node in graph.nodes if op_name(node) == name]


def op_names(graph: fx.Graph) -> list[str]:
    """The canonical operations of a graph in order; the target's name where it has none."""
    called = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    return [op_name(node) or str(getattr(node.target, "__name__", node.target)) for node in called]


def selected(graph: fx.Graph) -> list[str]:
    """What every row selection of a graph reads: ``"input"`` or the canonical operation."""
    sources = [node.args[0] for node in graph.nodes if is_selection(node)]
    return ["input" if node.op in ("placeholder", "get_attr") else op_name(node) or "?" for node in sources]


def add_rows(graph: fx.Graph, mask: fx.Node, through: bool = False) -> RowSet:
    """The row index of ``mask``, right after the inputs."""
    with graph.inserting_before(list(graph.find_nodes(op="placeholder"))[-1].next):
        both = graph.call_function(KEPT_ROWS, (mask, through))
        rows = graph.call_function(getitem, (both, 0))
        live = graph.call_method("unsqueeze", (graph.call_function(getitem, (both, 1)), -1))
        return RowSet("visual", rows, live, graph.call_method("size", (rows, 1)))


def getitem(parts: Any, index: int) -> Any:
    """Take a part. Not `operator.getitem`, so that tests can tell the model's own indexing from this one."""
    return parts[index]


declare(plain("test::getitem", "parts, index", aliases=("parts",)), functions=[getitem])


@dataclass
class Pushed:
    """What became of one selection.

    Attributes:
        result: ``select(f(x))`` as the changed graph computes it.
        before, after: canonical operations before and after.
        stops: where selections stopped early.
        selected: what the selections read afterwards.
    """

    result: Any = None
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    stops: list[Refusal] = field(default_factory=list)
    selected: list[str] = field(default_factory=list)


def push(
    fn: Callable[..., Any],
    visual: Tensor,
    *inputs: Tensor,
    dim: int = 1,
    dynamic: bool | None = None,
    out_of_place: bool = False,
) -> Pushed:
    """Select the kept rows of ``fn(*inputs)`` along ``dim``, push the selection down and run the graph.

    With ``out_of_place``, what the function writes in place is first written out of place where that is safe.
    """
    done = Pushed()

    def with_mask(mask: Tensor, *xs: Tensor) -> tuple[Any, Tensor]:
        return fn(*xs), torch.isnan(mask)

    def change(gm: fx.GraphModule) -> fx.Graph:
        graph = copy_graph(gm.graph)
        if out_of_place:
            write_out_of_place(graph)
            remove_dead(graph)
        marker = nodes_named(graph, "isnan")[-1]
        mask, output = marker.args[0], graph.output_node()
        # Dynamo gives every output once, in the order of `with_mask`.
        (result,) = [node for node in output.args[0] if node is not marker]
        rows = add_rows(graph, mask)
        done.before = op_names(gm.graph)
        with graph.inserting_before(output):
            selection = graph.call_function(select_rows, (result, rows.rows, dim))
        output.args = (tuple(selection if node is result else node for node in output.args[0]),)
        done.stops = Pushdown(graph, {"visual": rows}, mask.meta["example_value"][..., None]).run()
        remove_dead(graph)
        graph.lint()
        done.after, done.selected = op_names(graph), selected(graph)
        return graph

    done.result = run_changed(with_mask, visual, *inputs, change=change, dynamic=dynamic)[0]
    return done


def kept_of(visual: Tensor, through: bool = False) -> list[Tensor]:
    """The kept rows of every element, written independently of the package."""
    kept = []
    for element in visual.tolist():
        last = max((i for i, is_visual in enumerate(element) if is_visual), default=-1)
        rows = [i for i, is_visual in enumerate(element) if not is_visual and not (through and i < last)]
        kept.append(torch.tensor(rows, dtype=torch.int64))
    return kept


def assert_rows(result: Tensor, full: Tensor, visual: Tensor, dim: int = 1, tolerance: float = 1e-6) -> None:
    """``result`` holds the kept rows of ``full`` in front; what fills up a shorter element may be anything."""
    kept = kept_of(visual)
    assert result.dtype == full.dtype
    if len(kept) == 1:
        torch.testing.assert_close(result, full.index_select(dim, kept[0]), rtol=tolerance, atol=tolerance)
        return
    full = full.expand(len(kept), *full.shape[1:])
    assert result.shape[dim] == max(len(rows) for rows in kept)
    for mine, whole, rows in zip(result, full, kept, strict=True):
        expected = whole.index_select(dim - 1, rows)
        torch.testing.assert_close(mine.narrow(dim - 1, 0, len(rows)), expected, rtol=tolerance, atol=tolerance)
