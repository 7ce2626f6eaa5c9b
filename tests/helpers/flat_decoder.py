"""A decoder as vLLM writes it, in plain torch: flat rows, sums fused into norms, packed projections, a paged cache.

The operators of vLLM that it calls are registered here, and a step of several requests attends by `Paged`, which knows
no kernel. So what the plug-in does to such a decoder is tested where vLLM is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

HEADS, KEY_HEADS, SIZE, WIDTH, INNER, LAYERS = 4, 2, 8, 32, 48, 4
EXPERTS: dict[str, Tensor] = {}  # by name of the layer, (experts, width, width)

if find_spec("vllm") is None:
    _LIBRARY = torch.library.Library("vllm", "FRAGMENT")
    _LIBRARY.define("unified_kv_cache_update(Tensor key, Tensor value, str layer_name) -> Tensor")
    _LIBRARY.define(
        "unified_attention_with_output(Tensor query, Tensor key, Tensor value, Tensor(a!) output, str layer_name, "
        "Tensor? output_scale=None, Tensor? output_block_scale=None, Tensor? kv_cache_dummy_dep=None) -> ()"
    )
    _LIBRARY.define("somebodys_experts(Tensor(a!) out, Tensor x) -> ()")
    _LIBRARY.define("somebodys_sum(Tensor(a!) x) -> ()")
    _GIVEN = "Tensor router_logits, Tensor? shared_experts_input, Tensor? input_ids, str layer_name, SymInt narrower"
    _LIBRARY.define(f"moe_forward(Tensor(a!) hidden_states, {_GIVEN}) -> Tensor")
    _LIBRARY.define(f"moe_forward_shared(Tensor hidden_states, {_GIVEN}) -> (Tensor, Tensor)")
    _LIBRARY.impl("moe_forward", lambda x, logits, shared, ids, layer, _: ask(x, logits, shared, layer), "CPU")
    _LIBRARY.impl(
        "moe_forward_shared", lambda x, logits, shared, ids, layer, _: ask(x.clone(), logits, shared, layer), "CPU"
    )
    torch.library.register_fake("vllm::moe_forward", lambda x, *given: torch.empty_like(x))
    torch.library.register_fake(
        "vllm::moe_forward_shared", lambda x, *given: (torch.empty_like(x), torch.empty_like(x))
    )
    _KERNELS = torch.library.Library("_C", "FRAGMENT")
    _KERNELS.define("weight_packed_linear(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, bool is_vnni) -> ()")
    _KERNELS.impl("weight_packed_linear", lambda out, *given: _write(out, *given[:3]), "CPU")
    torch.library.register_fake("_C::weight_packed_linear", lambda *args: None)
    torch.library.register_fake("vllm::somebodys_sum", lambda x: None)
    torch.library.register_fake("vllm::somebodys_experts", lambda out, x: None)
    torch.library.register_fake("vllm::unified_kv_cache_update", lambda key, value, layer_name: key.new_empty(0))
    torch.library.register_fake("vllm::unified_attention_with_output", lambda *args, **named: None)


def _write(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    out.copy_(linear(x, weight, bias))


def ask(x: Tensor, logits: Tensor, shared: Tensor | None, layer: str) -> Any:
    """Each row asks the one of the experts that it likes most, and with ``shared`` the sum of all; ``x`` is lost."""
    experts = EXPERTS[layer]
    routed = torch.einsum("rw,rwo->ro", x, experts[logits.argmax(-1)])
    x.zero_()
    return routed if shared is None else (shared @ experts.sum(0), routed)


@dataclass
class Common:
    """The fields of vLLM's description of a step that the plug-in reads; a block of the cache holds one row."""

    query_start_loc: Tensor
    query_start_loc_cpu: Tensor
    seq_lens: Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    block_table_tensor: Tensor
    slot_mapping: Tensor
    seq_lens_cpu_upper_bound: Tensor | None = None
    positions: Tensor | None = None
    is_prefilling: Tensor | None = None
    _num_computed_tokens_cache: Any = None
    _token_to_req_indices_cache: Any = None


class Metadata:
    """What a builder makes of a step; it carries what it was made from."""

    def __init__(self, builder: Builder, common: Common) -> None:
        self._opskip = (builder, common)


@dataclass
class Builder:
    """A builder of vLLM."""

    kv_cache_spec: Any = None
    layer_names: Any = None
    config: Any = None
    device: Any = None

    def build(self, prefix: int, common: Common) -> Metadata:
        return Metadata(self, common)


@dataclass
class Paged:
    """A paged cache of keys and values, and attention to it."""

    requests: int
    longest: int = 64
    keys: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    now: Metadata | None = None

    def step(self, lengths: Sequence[int], before: Sequence[int]) -> Metadata:
        """The metadata of a step with so many rows of each request after so many earlier ones."""
        starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        table = torch.arange(self.requests * self.longest).view(self.requests, self.longest)
        slots = [table[i, first : first + count] for i, (count, first) in enumerate(zip(lengths, before, strict=True))]
        total = torch.tensor([a + b for a, b in zip(lengths, before, strict=True)], dtype=torch.int32)
        common = Common(
            starts,
            starts,
            total,
            len(lengths),
            int(starts[-1]),
            max(lengths),
            table,
            torch.cat(slots),
            total,
            None,
            None,
        )
        self.now = Builder().build(0, common)
        return self.now

    def write(self, key: Tensor, value: Tensor, layer: str) -> None:
        assert self.now is not None
        slots = self.now._opskip[1].slot_mapping
        for store, new in ((self.keys, key), (self.values, value)):
            store.setdefault(layer, new.new_zeros(self.requests * self.longest, *new.shape[1:]))[slots] = new[
                : len(slots)
            ]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, layer: str, metadata: Any = None) -> None:
        assert self.now is not None
        common = (metadata or self.now)._opskip[1]
        for i, (first, last) in enumerate(zip(common.query_start_loc, common.query_start_loc[1:], strict=False)):
            if i == common.num_reqs:
                break
            length, rows = int(common.seq_lens[i]), int(last - first)
            slots = common.block_table_tensor[i, :length]
            k, v = (store[layer][slots].repeat_interleave(HEADS // KEY_HEADS, 1) for store in (self.keys, self.values))
            scores = torch.einsum("qhd,khd->hqk", query[first:last], k) / SIZE**0.5
            late = torch.arange(length)[None, :] > torch.arange(length - rows, length)[:, None]
            out[first:last] = torch.einsum("hqk,khd->qhd", scores.masked_fill(late, -torch.inf).softmax(-1), v)


def norm(x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A norm as vLLM has it: it adds what was computed to the residual first, and gives the sum beside."""
    kind = x.dtype
    x = x.to(torch.float32)
    if residual is not None:
        x = x + residual.to(torch.float32)
    stream = x.to(kind)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (x.to(weight.dtype) * weight).to(kind), stream


def heads_normed(x: Tensor) -> Tensor:
    """Queries with a norm over each head."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Layer(nn.Module):
    def __init__(self, number: int, kernel: str) -> None:
        super().__init__()
        self.name, self.kernel = f"layers.{number}.attn", kernel
        for name, shape in {
            "qkv": ((HEADS + 2 * KEY_HEADS) * SIZE, WIDTH),
            "o": (WIDTH, HEADS * SIZE),
            "up": (2 * INNER, WIDTH),
            "down": (WIDTH, INNER),
            "router": (3, WIDTH),
        }.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.3))
        self.bias = nn.Parameter(torch.randn((HEADS + 2 * KEY_HEADS) * SIZE) * 0.1)
        self.first, self.second = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.rand(WIDTH))

    def attention(self, x: Tensor) -> Tensor:
        packed = linear(x, self.qkv, self.bias)
        query, key, value = packed.split([HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE], dim=-1)
        query = heads_normed(query.view(*query.shape[:-1], HEADS, SIZE)).view(query.size())
        out = torch.empty(x.shape[0], HEADS * SIZE, dtype=x.dtype)
        query, out = query.view(-1, HEADS, SIZE), out.view(-1, HEADS, SIZE)
        key, value = key.view(-1, KEY_HEADS, SIZE), value.view(-1, KEY_HEADS, SIZE)
        written = torch.ops.vllm.unified_kv_cache_update(key, value, self.name)
        torch.ops.vllm.unified_attention_with_output(query, key, value, out, self.name, kv_cache_dummy_dep=written)
        return linear(out.view(-1, HEADS * SIZE), self.o)

    def ffn(self, x: Tensor) -> Tensor:
        if self.kernel == "routed":
            out: Tensor = torch.ops.vllm.moe_forward(x, linear(x, self.router), None, None, self.name, 0)
            return out
        if self.kernel == "shared":
            both = torch.ops.vllm.moe_forward_shared(x, linear(x, self.router), x, None, self.name, 0)
            return both[0] + both[1]
        up = linear(x, self.up)
        up = silu(up[..., :INNER]) * up[..., INNER:]
        if self.kernel != "blocked":
            return linear(up, self.down)
        out = torch.empty((*up.shape[:-1], WIDTH), dtype=up.dtype)
        torch.ops._C.weight_packed_linear(out.reshape(-1, WIDTH), up.reshape(-1, INNER), self.down, None, True)
        return out


class FlatDecoder(nn.Module):
    """``forward(inputs_embeds (rows, width), deepstack (rows, width)) -> (rows, width)``.

    Args:
        unknown: a kernel that nothing is known of and that FFNs end in: ``"experts"`` fill memory that was made for
            them, ``"sum"`` writes in place.
        kernel: of FFNs: ``"blocked"`` ends in a product with a weight in blocks, as vLLM has them on AMX; ``"routed"``
            and ``"shared"`` are experts as vLLM has them on a GPU.
    """

    def __init__(self, unknown: str = "", kernel: str = "") -> None:
        super().__init__()
        self.unknown = unknown
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(i, kernel) for i in range(LAYERS))
        EXPERTS.update({layer.name: torch.randn(3, WIDTH, WIDTH) * 0.1 for layer in self.layers})
        self.last = nn.Parameter(torch.rand(WIDTH))

    def forward(self, inputs_embeds: Tensor, deepstack: Tensor) -> Tensor:
        x, residual = inputs_embeds, None
        for i, layer in enumerate(self.layers):
            x, residual = norm(x, residual, layer.first)
            x, residual = norm(layer.attention(x), residual, layer.second)
            x = layer.ffn(x)
            if self.unknown == "sum":
                torch.ops.vllm.somebodys_sum(x)
            elif self.unknown:
                out = torch.empty_like(x)
                torch.ops.vllm.somebodys_experts(out, x)
                x = out
            if i == 0:
                x = x + deepstack
        return norm(x, residual, self.last)[0]

    def oracle(
        self, embeds: Tensor, deepstack: Tensor, left_out: Mapping[str, Tensor], states: Sequence[Any], paged: Paged
    ) -> Tensor:
        """The same with the rows of skipped operators dropped before they reach the stream, by plain code.

        ``left_out`` has them by row set, bool ``(rows,)``.
        """
        h = embeds
        for i, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            packed = linear(norm(h, None, layer.first)[0], layer.qkv, layer.bias)
            query, key, value = packed.split([HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE], dim=-1)
            out = h.new_zeros(len(h), HEADS, SIZE)
            heads = (
                heads_normed(query.reshape(-1, HEADS, SIZE)),
                *(x.reshape(-1, KEY_HEADS, SIZE) for x in (key, value)),
            )
            paged.write(*heads[1:], layer.name)
            paged.attend(*heads, out, layer.name)
            h = h + _without(linear(out.reshape(len(h), -1), layer.o), left_out, state.attention)
            h = h + _without(layer.ffn(norm(h, None, layer.second)[0]), left_out, state.ffn)
            h = h + deepstack if i == 0 else h
        return norm(h, None, self.last)[0]


def _without(update: Tensor, left_out: Mapping[str, Tensor], skip: Any) -> Tensor:
    return update if skip is None else update.masked_fill(left_out[skip.rows][:, None], 0.0)
