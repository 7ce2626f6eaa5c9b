"""Decoders that read the image by cross-attention have no visual rows in their stream, and say so.

In self-attention queries and keys come from one stream. Where only one of them does, the attention crosses from one
stream into another: an encoder-decoder (the stream with the visual rows is the encoder's) or a decoder whose layers
look at image features from outside (Mllama, Idefics). Neither is a stream whose rows could be left out.
"""

from __future__ import annotations

from collections.abc import Container

from torch import fx

from opskip_compile.passes.analysis.dataflow import dataflow, is_attention_product, queries_keys_values
from opskip_compile.passes.ops import mutated_nodes, op_name, operand, tensor
from opskip_compile.passes.ops.streams import is_stream
from opskip_compile.passes.refusal import Refusal, Why

ENCODER = Refusal(
    Why.ENCODER, "the visual rows are in an encoder, and the decoder reads them by cross-attention: its stream has none"
)
OUTSIDE = Refusal(Why.CROSS_ATTENTION, "the decoder reads the image by cross-attention: its stream has no visual rows")


def crossing(graph: fx.Graph, stream: Container[fx.Node]) -> Refusal | None:
    """Which kind of cross-attention connects ``stream``, all that is computed from one value, with another, if any."""
    mutated: frozenset[fx.Node] | None = None
    for node in graph.nodes:
        if not is_attention_product(node):
            continue
        query, key, _ = queries_keys_values(node)
        if query is None or key is None or (query in stream) == (key in stream):
            continue
        if query not in stream:
            return ENCODER
        # A static cache is written in place and read back from a graph input: these are the stream's own keys.
        mutated = mutated if mutated is not None else mutated_nodes(graph)
        if key not in mutated:
            return OUTSIDE
    return None


def crossing_without_rows(graph: fx.Graph) -> Refusal | None:
    """The same for a graph without visual rows: its stream starts at the embedding of token ids."""
    for node in graph.nodes:
        ids = operand(node) if op_name(node) == "embedding" and is_stream(node) else None
        value = tensor(ids)
        is_ids = ids is not None and ids.op == "placeholder" and value is not None and not value.is_floating_point()
        # The other way round it is the position table of a vision tower that a resampler reads.
        if is_ids and crossing(graph, dataflow(node)) is OUTSIDE:
            return OUTSIDE
    return None
