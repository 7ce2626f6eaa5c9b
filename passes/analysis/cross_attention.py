"""Decoders that read the image by cross-attention have no visual rows in their stream, and say so.

In self-attention queries and keys come from one stream. Where only one of them does, the attention crosses from one
stream into another: an encoder-decoder (the stream with the visual rows is the encoder's) or a decoder whose layers
look at image features from outside (Mllama, Idefics). Neither is a stream whose rows could be left out.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from torch import fx

from opskip_compile.passes.analysis.dataflow import PRODUCTS, dataflow, factors, is_attention_product, is_stream
from opskip_compile.passes.ops.nodes import mutated_nodes, op_name, tensor

ENCODER = "the visual rows are in an encoder, and the decoder reads them by cross-attention: its stream has none"
OUTSIDE = "the decoder reads the image by cross-attention: its stream has no visual rows"
CROSSINGS = frozenset({ENCODER, OUTSIDE})


def crossing(graph: fx.Graph, stream: Container[fx.Node], known: Iterable[str]) -> str:
    """Which kind of cross-attention connects ``stream``, all that is computed from one value, with another; or ''."""
    mutated: frozenset[fx.Node] | None = None
    for node in graph.nodes:
        if not is_attention_product(node):
            continue
        query, key = queries_and_keys(node)
        if query is None or key is None or (query in stream) == (key in stream):
            continue
        if query not in stream:
            return ENCODER
        # A static cache is written in place and read back from a graph input: these are the stream's own keys.
        mutated = mutated if mutated is not None else mutated_nodes(graph, known)
        if key not in mutated:
            return OUTSIDE
    return ""


def crossing_without_rows(graph: fx.Graph, known: Iterable[str]) -> str:
    """The same for a graph without visual rows: its stream starts at the embedding of token ids."""
    for node in graph.nodes:
        if op_name(node) != "embedding" or not is_stream(node) or not isinstance(node.args[0], fx.Node):
            continue
        ids = tensor(node.args[0])
        given = node.args[0].op == "placeholder" and ids is not None and not ids.is_floating_point()
        # The other way round it is the position table of a vision tower that a resampler reads.
        if given and crossing(graph, dataflow(node), known) == OUTSIDE:
            return OUTSIDE
    return ""


def queries_and_keys(product: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The query and key operands of an attention product, as far as they can be told."""
    if op_name(product) != "softmax":
        given = [*product.args[:2], *(product.kwargs.get(name) for name in ("query", "key") if name in product.kwargs)]
        nodes = [value for value in given if isinstance(value, fx.Node)]
        return (nodes[0], nodes[1]) if len(nodes) == 2 else (None, None)
    scores = product.args[0] if product.args else product.kwargs.get("input")
    for _ in range(16):  # scale, mask, cast, sinks beside the keys
        if isinstance(scores, list | tuple) and scores:
            scores = scores[0]
        if not isinstance(scores, fx.Node):
            break
        if op_name(scores) in PRODUCTS:
            left, right = factors(scores)
            return left, right
        scores = scores.args[0] if scores.args else None
    return None, None
