"""Toy decoders of every build, and the definition of skipping for them.

A decoder is one function of the stream, ``join`` and features to inject. It joins its operators to the stream
through ``join``: the model's adds, the oracle's adds nothing to a left-out row of a skipped operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, HEADS = 16, 2
torch.manual_seed(0)
# Layer, projection: q, k, v, o, up, gate, down, and a gate on the stream.
W = torch.randn(4, 8, WIDTH, WIDTH) / WIDTH**0.5

Join = Callable[..., Tensor]


def add(h: Tensor, layer: int, **branches: Tensor) -> Tensor:
    """The model's own residual addition."""
    for branch in branches.values():
        h = h + branch
    return h


def add_in_place(h: Tensor, layer: int, **branches: Tensor) -> Tensor:
    for branch in branches.values():
        h += branch
    return h


def oracle(visual: Tensor, skipped: Sequence[str], through: Sequence[str] = ()) -> Join:
    """Every row is computed; a left-out row of a skipped operator gets nothing added."""
    left_out = {False: visual, True: visual.flip(1).cumsum(1).flip(1) > 0}

    def join(h: Tensor, layer: int, **branches: Tensor) -> Tensor:
        for kind, branch in branches.items():
            name = f"{layer}.{kind}"
            rows = left_out[name in through][..., None] & (name in skipped)
            h = h + torch.where(rows, torch.zeros_like(branch), branch)
        return h

    return join


def norm(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def attention(h: Tensor, layer: int, cache: list[Tensor] | None = None) -> Tensor:
    q, k, v = (F.linear(h, W[layer, i]).view(*h.shape[:2], HEADS, -1).transpose(1, 2) for i in range(3))
    if cache is not None:
        cache += [k, v]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(out.transpose(1, 2).contiguous().view(*h.shape[:2], -1), W[layer, 3])


def gated(h: Tensor, layer: int) -> Tensor:
    return F.linear(F.silu(F.linear(h, W[layer, 5])) * F.linear(h, W[layer, 4]), W[layer, 6])


def pre_norm(h: Tensor, join: Join, features: Tensor) -> Tensor:
    for i in range(3):
        h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h), i))
    return norm(h)


def norm_after(h: Tensor, join: Join, features: Tensor) -> Tensor:
    for i in range(2):
        h = join(h, i, attention=norm(attention(norm(h), i)))
        h = join(h, i, ffn=norm(gated(norm(h), i)))
    return norm(h)


def parallel(h: Tensor, join: Join, features: Tensor) -> Tensor:
    for i in range(3):
        n = norm(h)
        h = join(h, i, attention=attention(n, i), ffn=gated(n, i))
    return norm(h)


def scaled(h: Tensor, join: Join, features: Tensor) -> Tensor:
    for i in range(2):
        h = join(h, i, attention=0.2 * attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h), i) * 0.2)
    return norm(h)


def deepstack(h: Tensor, join: Join, features: Tensor) -> Tensor:
    for i in range(3):
        h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h), i))
        h = h + features * (i + 1)
    return norm(h)


def deepstack_in_place(h: Tensor, join: Join, features: Tensor) -> Tensor:
    for i in range(3):
        h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h), i)).clone()
        h[:, :4] += features[:, :4]
    return norm(h)


def in_place_at_once(h: Tensor, join: Join, features: Tensor) -> Tensor:
    for i in range(3):
        h = join(h, i, attention=attention(norm(h), i))
        h[:, :4] += features[:, :4]
        h = join(h, i, ffn=gated(norm(h), i))
    return norm(h)


def plain_ffn(h: Tensor, join: Join, features: Tensor) -> Tensor:
    for i in range(2):
        h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=F.linear(F.gelu(F.linear(norm(h), W[i, 4])), W[i, 6]))
    return norm(h)


def hidden_states(h: Tensor, join: Join, features: Tensor) -> tuple[Tensor, ...]:
    states = [h]
    for i in range(3):
        h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h), i))
        states.append(h)
    return (norm(h), *states[1:])


def shape_only(h: Tensor, join: Join, features: Tensor) -> Tensor:
    """Every layer also reads a tensor that is made from the shape of the input, and nothing of its data."""
    ones = torch.ones_like(h) * h.new_ones(h.shape[0], h.size(1), 1)
    for i in range(3):
        h = join(h, i, attention=attention(norm(h) * ones, i))
        h = join(h, i, ffn=gated(norm(h) + ones, i))
    return norm(h)


def ffn_first(h: Tensor, join: Join, features: Tensor) -> Tensor:
    """An operator without a layer stands before the layers."""
    h = h + gated(norm(h), 2)
    for i in range(2):
        h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h), i))
    return norm(h)


def two_ffns(h: Tensor, join: Join, features: Tensor) -> Tensor:
    """As in a hybrid decoder, whose layers do not all begin with an attention."""
    for i in range(2):
        h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h), i))
        h = h + gated(norm(h), 2)
    return norm(h)


def with_cache(h: Tensor, join: Join, features: Tensor) -> tuple[Tensor, ...]:
    cache: list[Tensor] = []
    for i in range(3):
        h = join(h, i, attention=attention(norm(h), i, cache))
        h = join(h, i, ffn=gated(norm(h), i))
    return (norm(h), *cache)


def gate_in_layer_one(h: Tensor, join: Join, features: Tensor) -> Tensor:
    for i in range(3):
        if i == 1:
            h = h * torch.sigmoid(F.linear(h, W[i, 7])) + attention(norm(h), i)
        else:
            h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h), i))
    return norm(h)


def added_in_place(h: Tensor, join: Join, features: Tensor) -> tuple[Tensor, Tensor]:
    h = join(h, 0, attention=attention(norm(h), 0)).clone()
    alias = h[:, :3]
    h = add_in_place(h, 0, ffn=gated(norm(h), 0))
    return norm(h), alias


def fragment(h: Tensor, join: Join, features: Tensor) -> Tensor:
    for i in range(2):
        h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h), i))
    return h


def shared_keys(h: Tensor, join: Join, features: Tensor) -> Tensor:
    """The last two layers read keys and values of the first two, as Gemma 4 does."""
    kept: list[Tensor] = []
    for i in range(4):
        n = norm(h)
        q = F.linear(n, W[i, 0]).view(*h.shape[:2], HEADS, -1).transpose(1, 2)
        if i < 2:
            kept += [F.linear(n, W[i, j]).view(*h.shape[:2], HEADS, -1).transpose(1, 2) for j in (1, 2)]
        out = F.scaled_dot_product_attention(q, *kept[i % 2 * 2 : i % 2 * 2 + 2], is_causal=True)
        out = F.linear(out.transpose(1, 2).contiguous().view(*h.shape[:2], -1), W[i, 3])
        h = join(h, i, attention=out)
        h = join(h, i, ffn=gated(norm(h), i)) * 0.9
    return norm(h)


def handed_on(h: Tensor, join: Join, features: Tensor, width: int = 4) -> Tensor:
    """Every layer adds features that were made of the stream once, as Gemma's embeddings of each layer are."""
    made = norm(F.linear(h, W[0, 7][: 3 * width])).view(*h.shape[:2], 3, width)
    for i in range(3):
        h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h), i))
        h = h + norm(F.linear(F.linear(h, W[i, 7][:width]).sigmoid() * made[:, :, i], W[i, 7][:, :width]))
    return norm(h)


def handed_on_as_wide(h: Tensor, join: Join, features: Tensor) -> Tensor:
    """What passes the sums by may be a stream itself."""
    made = F.linear(h, W[0, 7])
    for i in range(3):
        h = join(h, i, attention=attention(norm(h), i))
        h = join(h, i, ffn=gated(norm(h) * made, i))
    return norm(h)


def branch_read_twice(h: Tensor, join: Join, features: Tensor) -> Tensor:
    """What the first attention gives is read again in the next layer."""
    first = attention(norm(h), 0)
    h = join(h, 0, attention=first)
    h = join(h, 0, ffn=gated(norm(h), 0))
    h = join(h, 1, attention=attention(norm(h) * F.linear(first, W[1, 7][:1]), 1))
    h = join(h, 1, ffn=gated(norm(h), 1))
    return norm(h)
