"""Which processes exchange values in a decoder: they have to run the same code, on the same rows."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.analysis.dataflow import is_attention_product
from opskip_compile.passes.analysis.match import may_be_causal
from opskip_compile.passes.analysis.operators import Match
from opskip_compile.passes.collectives import EXCHANGES
from opskip_compile.passes.ops import op_name, tensor
from opskip_compile.passes.ops.streams import is_stream


def exchanging_groups(graph: fx.Graph, match: Match) -> tuple[str, ...]:
    """The groups whose processes exchange values in the operators of a decoder; in order, once each.

    Without operators, as for text and in decode steps, those who exchange whole streams. Not in a vision tower: its
    processes may have images of their own.
    """
    if match.operators:
        return exchanged_in(node for operator in match.everything() for node in operator.region)
    streams = [node for node in graph.nodes if node.target in EXCHANGES and is_stream(node)]
    return exchanged_in(streams) if any(map(_is_step, streams)) or any(map(_decodes, graph.nodes)) else ()


def exchanged_in(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    """The groups whose processes exchange values of more than one dimension there; in order, once each."""
    found = [node for node in nodes if node.target in EXCHANGES]
    values = [(node, tensor(node)) for node in found]
    return tuple(dict.fromkeys(str(node.args[-1]) for node, value in values if value is None or value.dim() > 1))


def _is_step(stream: fx.Node) -> bool:
    value = tensor(stream)
    return value is not None and same_size(value.shape[1], 1)


def _decodes(node: fx.Node) -> bool:
    """True for an attention that may be a decoder's: PyTorch's kernel tells, by a mask or as a causal one."""
    return may_be_causal(node) if op_name(node) == "scaled_dot_product_attention" else is_attention_product(node)
