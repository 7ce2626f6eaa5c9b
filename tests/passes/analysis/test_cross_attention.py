"""Streams that cross: encoder-decoders and decoders that read the image by cross-attention; hybrids; writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from opskip_compile.passes.analysis.cross_attention import ENCODER, OUTSIDE, crossing, crossing_without_rows
from opskip_compile.passes.analysis.dataflow import dataflow
from opskip_compile.passes.analysis.match import match_operators
from tests.helpers.graphs import capture, nodes_named

IDS, TABLE, IMAGE = torch.arange(7)[None], torch.randn(9, 8), torch.randn(1, 5, 8)
W = torch.randn(8, 8)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, 4)).transpose(1, 2)


def fused(x: Tensor, y: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(heads(x), heads(y), heads(y)).transpose(1, 2).flatten(2)


def by_hand(x: Tensor, y: Tensor) -> Tensor:
    scores = torch.matmul(heads(x), heads(y).transpose(2, 3)) * 0.5
    return torch.matmul(F.softmax(scores.float(), -1).to(x.dtype), heads(y)).transpose(1, 2).flatten(2)


ATTENTIONS = pytest.mark.parametrize("attention", [fused, by_hand])


def stream_of(graph: fx.Graph, name: str = "embedding") -> fx.Node:
    return nodes_named(graph, name)[0]


@ATTENTIONS
def test_decoder_that_reads_the_image_from_outside(attention: Callable[..., Tensor]) -> None:
    def decoder(ids: Tensor, table: Tensor, image: Tensor) -> Tensor:
        x = F.embedding(ids, table)
        x = x + attention(x, x)
        return x + attention(x, image)

    graph = capture(decoder, IDS, TABLE, IMAGE).graph
    assert crossing_without_rows(graph) == OUTSIDE
    assert match_operators(stream_of(graph)).doubt == OUTSIDE


@ATTENTIONS
def test_self_attention_is_no_crossing(attention: Callable[..., Tensor]) -> None:
    def decoder(ids: Tensor, table: Tensor, image: Tensor) -> Tensor:
        x = F.embedding(ids, table) + image.mean(1, keepdim=True)
        return x + attention(x, x)

    graph = capture(decoder, IDS, TABLE, IMAGE).graph
    assert crossing_without_rows(graph) is None
    assert len(match_operators(stream_of(graph)).operators) == 1


@ATTENTIONS
def test_encoder_that_a_decoder_reads(attention: Callable[..., Tensor]) -> None:
    def both(ids: Tensor, table: Tensor, image: Tensor) -> Tensor:
        encoded = image.sin()
        encoded = encoded + attention(encoded, encoded)
        x = F.embedding(ids, table)
        return x + attention(x, encoded.cos())

    graph = capture(both, IDS, TABLE, IMAGE).graph
    match = match_operators(stream_of(graph, "sin"))
    assert (match.doubt, match.operators) == (ENCODER, [])


def test_a_static_cache_is_no_crossing() -> None:
    def decoder(ids: Tensor, table: Tensor, cache: Tensor) -> Tensor:
        x = F.embedding(ids, table)
        cache.index_copy_(1, torch.arange(7), x)
        return x + fused(x, cache)

    graph = capture(decoder, IDS, TABLE, torch.zeros(1, 9, 8)).graph
    assert crossing(graph, dataflow(stream_of(graph))) is None


def recurrence(x: Tensor) -> Tensor:
    """A short convolution over the sequence whose result is written into a buffer."""
    mixed = F.conv1d(x.transpose(1, 2), W[:, None, :3], padding=2, groups=8)[..., : x.shape[1]].transpose(1, 2)
    out = torch.zeros_like(mixed)
    out[:, :] = mixed
    return F.linear(out * x.sigmoid(), W)


def ffn(x: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, W)), W)


def hybrid(ids: Tensor, table: Tensor) -> Tensor:
    x = F.embedding(ids, table)
    x = x + recurrence(x)
    x = x + ffn(x)
    x = x + fused(x, x)
    x = x + ffn(x)
    return F.rms_norm(x, (8,))


def convolution_after_attention(ids: Tensor, table: Tensor) -> Tensor:
    x = F.embedding(ids, table)
    x = x + fused(x, x)
    x = x + recurrence(x)
    x = x + ffn(x)
    return F.rms_norm(x, (8,))


def test_a_convolution_begins_a_layer() -> None:
    match = match_operators(stream_of(capture(hybrid, IDS, TABLE).graph))
    assert [op.name for op in match.operators] == ["0.attention", "0.ffn", "1.attention", "1.ffn"]
    assert match.doubt is None


def test_a_convolution_beside_an_attention_leaves_a_doubt() -> None:
    match = match_operators(stream_of(capture(convolution_after_attention, IDS, TABLE).graph))
    assert match.doubt is not None
    assert "mixes rows by a convolution" in match.doubt.reason


def test_what_is_written_in_place_flows_on() -> None:
    def fn(x: Tensor, y: Tensor) -> Tensor:
        buffer = torch.zeros_like(y)
        early = buffer.sin()
        buffer[:, 1:].copy_(x.exp()[:, 1:])
        return buffer.cos() + early

    graph = capture(fn, torch.randn(1, 4, 2), torch.randn(1, 4, 2)).graph
    flow = dataflow(nodes_named(graph, "exp")[0])
    assert nodes_named(graph, "cos")[0] in flow
    assert nodes_named(graph, "sin")[0] not in flow


@ATTENTIONS
def test_a_resampler_that_reads_positions_is_no_crossing(attention: Callable[..., Tensor]) -> None:
    def tower(ids: Tensor, table: Tensor, latents: Tensor) -> Tensor:
        return latents + attention(latents, F.embedding(ids, table))

    assert crossing_without_rows(capture(tower, IDS, TABLE, IMAGE).graph) is None
