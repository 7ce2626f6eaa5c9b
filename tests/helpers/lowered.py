"""The graphs that Inductor is given: traced by AOTAutograd with the sizes of their values, and then run as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from opskip_compile import _compat


@contextmanager
def lowered_graphs() -> Iterator[list[fx.GraphModule]]:
    """Collects the graphs that are lowered meanwhile, without regions in them if that option is off."""
    found: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        found.append(gm)
        return gm.forward

    def lower(gm: fx.GraphModule, inputs: Sequence[Any], config: Mapping[str, Any]) -> Any:
        return aot_autograd(fw_compiler=keep)(gm, inputs)

    with mock.patch.object(_compat, "inductor", lower):
        yield found


def asks_for_data(gm: fx.GraphModule) -> list[str]:
    """The nodes whose size depends on data, or that ask for data: Inductor records no CUDA graph of them."""
    return [
        node.name
        for each in gm.modules()
        if isinstance(each, fx.GraphModule)
        for node in each.graph.nodes
        if free_unbacked_symbols(node.meta.get("val"))
        or torch.Tag.data_dependent_output in getattr(node.target, "tags", ())  # brings a value to the host
    ]
