"""How many visual rows the call has for which the graph is compiled: the mask's few nodes run on the real inputs.

Only a report needs this. Whatever stands in the way (fake inputs, a mask that is costly to compute) leaves the
number open and never stops a compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from opskip_compile._compat import is_fake, size_hint
from opskip_compile.passes.analysis.locate import RowSource
from opskip_compile.passes.graph.sizes import Prompt
from opskip_compile.passes.ops import is_inplace, op_name, products, tensor

_MOST_NODES = 64


def read_prompt(graph: fx.Graph, source: RowSource, inputs: Sequence[Any]) -> Prompt | None:
    """The rows of this call, or None where they can't be known cheaply.

    Args:
        graph: a captured graph.
        source: where its visual mask is.
        inputs: a value for every placeholder.
    """
    wanted = _needed(source)
    stream = tensor(source.root)
    if wanted is None or stream is None:
        return None
    with torch.no_grad():
        try:
            mask = _run(graph, source, wanted, inputs)
            visual = tuple(int(count) for count in mask.sum(1))
            through = tuple(int(count) for count in (mask.flip(1).cumsum(1) > 0).sum(1))
        except Exception:  # this code is the model's, and nothing depends on it but a number in a report
            return None
    given = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=False))
    rooms = {name: len(given[room]) for name, room in source.rooms.items() if room in given}
    batch, rows = (size_hint(size) for size in stream.shape[:2])
    return Prompt(batch, rows, visual, through, rooms) if isinstance(batch, int) and isinstance(rows, int) else None


def _needed(source: RowSource) -> set[fx.Node] | None:
    """Everything that the mask is computed from, if that is little."""
    wanted, stack = set(source.masks), list(source.masks)
    while stack:
        node = stack.pop()
        if is_inplace(node) or op_name(node) in products() or len(wanted) > _MOST_NODES:
            return None
        for other in node.all_input_nodes:
            if other not in wanted:
                wanted.add(other)
                stack.append(other)
    return wanted


def _run(graph: fx.Graph, source: RowSource, wanted: set[fx.Node], inputs: Sequence[Any]) -> Tensor:
    values: dict[fx.Node, Any] = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=False))
    for node in graph.nodes:
        if node not in wanted or node in values:
            continue
        if node.op == "get_attr":
            owner: Any = graph.owning_module
            for name in str(node.target).split("."):
                owner = getattr(owner, name)
            values[node] = owner
            continue
        args = map_arg(node.args, values.__getitem__)
        kwargs = map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_method":
            values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        elif node.op == "call_function":
            values[node] = node.target(*args, **kwargs)
        else:
            raise NotImplementedError(node.op)
    result: Tensor | None = None
    for node in source.masks:
        mask: Tensor = values[node]
        if is_fake(mask) or mask.device.type == "meta":
            raise NotImplementedError("a mask without data")
        flat = (
            mask if mask.dim() == 2 else mask[..., 0] if mask.stride(-1) == 0 or mask.shape[-1] == 1 else mask.any(-1)
        )
        result = flat if result is None else result | flat
    assert result is not None
    return result.cpu()
