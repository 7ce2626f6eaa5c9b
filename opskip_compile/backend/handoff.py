"""From one graph of a forward to the next: the mask of the visual rows, where a graph break lies before the decoder.

The graph that merges image features marks the tensor that it hands on; the graph with the decoder takes the mask of a
marked input as one more input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from opskip_compile import _compat
from opskip_compile.passes.analysis.locate import RowSource, row_mask
from opskip_compile.passes.marks import MARKS
from opskip_compile.passes.normalize.cleanup import copy_graph
from opskip_compile.passes.ops import tensor
from opskip_compile.passes.ops.streams import is_stream
from opskip_compile.passes.runtime import NAMES_ROWS

Compiled = Callable[..., Any]


def taking_up(run: Compiled, position: int) -> Compiled:
    """Call a decoder that has its rows from elsewhere, or skips nothing on purpose: its input's mark is settled."""

    def call(*args: Any) -> Any:
        mark = MARKS.get(args[position])
        if mark is not None:
            mark.used = True
        return run(*args)

    return call


def with_mask(run: Compiled, position: int) -> Compiled:
    """Call a graph whose last input is the mask of input ``position``; an unmarked input has no visual rows."""

    def call(*args: Any) -> Any:
        hidden = args[position]
        mark = MARKS.get(hidden)
        if mark is not None:
            mark.used = True
            mask = mark.mask.to(hidden.device)
        else:
            mask = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return run(*args, mask)

    return call


def marking(
    gm: fx.GraphModule, source: RowSource, finish: Callable[[fx.GraphModule], Compiled], if_unused: str
) -> Compiled:
    """A graph that merges image features and ends before the decoder: mark the tensor that it hands on."""
    graph = copy_graph(gm.graph)
    output = graph.output_node()
    named = {node.name: node for node in graph.nodes}
    earlier = None if source.marked is None else position_of(graph, named[source.marked[0].name])
    masks = tuple(named[mask.name] for mask in source.masks if mask.name in named)  # of this graph alone
    source = RowSource(source.kind, named[source.root.name], masks)
    results = list(output.args[0]) if isinstance(output.args[0], tuple | list) else []
    handed = [n for n in graph.nodes if n is source.root or n.target in NAMES_ROWS]
    position = next((i for i, n in enumerate(results) if n in handed), None)
    if position is None:
        return finish(gm)
    if masks:
        output.args = ((*results, row_mask(graph, source)),)
    gm.graph = graph
    run = finish(gm)

    def call(*args: Any) -> Any:
        outs = list(run(*args))
        rows = outs.pop() if masks else None
        mark = None if earlier is None else MARKS.get(args[earlier])
        if mark is not None:
            mark.used, rows = True, mark.mask if rows is None else rows | mark.mask.to(rows.device)
        if rows is not None and bool(rows.any()):
            MARKS.put(outs[position], rows, if_unused=if_unused)
        return outs

    return call


def marked_position(graph: fx.Graph, inputs: Sequence[Any]) -> int | None:
    """The first input that carries a mark."""
    for i, value in enumerate(inputs):
        if MARKS.get(value) is not None:
            return i
    return None


def add_mask_input(graph: fx.Graph, position: int) -> tuple[fx.Node, fx.Node] | None:
    hidden = list(graph.find_nodes(op="placeholder"))[position]
    if not is_stream(hidden):
        return None
    example = tensor(hidden)
    assert example is not None
    mask = _compat.add_tensor_placeholder(graph, "opskip_visual_mask", _compat.fake_mask_like(example))
    return hidden, mask


def position_of(graph: fx.Graph, wanted: fx.Node) -> int:
    return list(graph.find_nodes(op="placeholder")).index(wanted)
