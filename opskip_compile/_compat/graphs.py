"""Graphs of ``torch.fx``: what Dynamo keeps on them, and the pattern matcher that comes with torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher


def add_tensor_placeholder(graph: fx.Graph, name: str, example: torch.Tensor) -> fx.Node:
    """A new last input of a Dynamo graph; AOTAutograd wants a source, and None means 'not from user code'."""
    last = list(graph.find_nodes(op="placeholder"))[-1]
    with graph.inserting_after(last):
        node = graph.placeholder(name)
    node.meta["example_value"] = example
    node._dynamo_source = None
    return node


def keep_dynamo(graph: fx.Graph, copied: fx.Graph, mapping: Mapping[fx.Node, fx.Node]) -> None:
    """What a copy of a graph does not take along by itself: how Dynamo calls it, and the sources of its inputs."""
    for old, new in mapping.items():
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    copied._codegen = graph._codegen


def pattern_matches(pattern: fx.Graph, graph: fx.Graph) -> Sequence[object]:
    """What the pattern matcher of ``torch.fx`` finds of ``pattern`` in ``graph``."""
    return SubgraphMatcher(pattern, match_output=False, match_placeholder=False, ignore_literals=True).match(graph)
