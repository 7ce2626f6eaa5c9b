"""Random decoders written op by op: operators that work row by row in odd ways, and operators that mix rows or batch.

A program is a function of the stream and of ``join`` (see `decoders`), so the definition of skipping is known for it,
whatever it computes. Nothing here is drawn while a program runs.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.decoders import Join, norm

WIDTH = 16
Branch = Callable[[Tensor], Tensor]
Program = Callable[[Tensor, Join, Tensor], Tensor]


def weight(rng: Random, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randint(0, 2**20))
    return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5


def heads(x: Tensor, count: int = 2) -> Tensor:
    return x.view(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def unheads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[None, :, None]


def through_buffer(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[..., ::2] = x[..., 1::2]
    return out + x


def rows_in_place(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, 1:] += 0.5 * x[:, :-1]
    return out


def router(x: Tensor) -> Tensor:
    scores, chosen = x.flatten(0, 1).topk(4, dim=-1)
    scores = scores / scores.abs().sum(-1, keepdim=True).clamp_min(0.1)
    return torch.zeros_like(x.flatten(0, 1)).scatter(1, chosen, scores).view(x.shape)


# Row by row, each in a spelling that rules have to see through.
BY_ROW: dict[str, Branch] = {
    "silu": F.silu,
    "tanh_times": lambda x: x.tanh() * x,
    "norm": norm,
    "layer_norm": lambda x: F.layer_norm(x, (x.shape[-1],)),
    "rms_norm": lambda x: F.rms_norm(x, (x.shape[-1],)),
    "heads_and_back": lambda x: unheads(norm(heads(x))),
    "sequence_first": lambda x: (x.transpose(0, 1).contiguous() * 1.5).transpose(0, 1),
    "width_first": lambda x: x.mT.softmax(1).mT * x,
    "flat_rows": lambda x: norm(x.reshape(-1, x.shape[-1])).view_as(x),
    "double": lambda x: (x.double().pow(2) + 1).sqrt().to(x.dtype),
    "rounded": lambda x: x.clamp(-2, 2).double().round(decimals=3).float(),
    "softmax_of_width": lambda x: x.softmax(-1) * 4 - x,
    "cumsum_of_width": lambda x: x.cumsum(-1) / 4,
    "sort_of_width": lambda x: x.sort(dim=-1)[0],
    "router": router,
    "glu": lambda x: torch.cat([F.glu(x, -1), x.chunk(2, -1)[0]], -1),
    "split": lambda x: torch.cat(x.split([4, 12], -1)[::-1], dim=2),
    "stack": lambda x: torch.stack([x[..., :8], x[..., 8:]], dim=-1).flatten(2),
    "unbind": lambda x: torch.stack(x.unflatten(-1, (8, 2)).unbind(-1)[::-1], -1).flatten(-2),
    "rotate": lambda x: torch.cat((-x[..., 8:], x[..., :8]), -1) * positions(x).cos() + x * positions(x).sin(),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "masked_fill": lambda x: x.masked_fill(x.sum(-1, keepdim=True) > 1, 0.5),
    "buffer": through_buffer,
    "expand": lambda x: (x[:, :, None] * x.new_ones(1, 1, 3, 1)).expand(-1, -1, 3, -1).sum(2) / 3,
    "einsum": lambda x: torch.einsum("bsw,bsv->bsw", x, x) / 4,
    "pad": lambda x: F.pad(x, (2, 0))[..., : x.shape[-1]],
    "flip_width": lambda x: x.flip(-1),
    "roll_width": lambda x: x.roll(3, dims=-1),
    "addcmul": lambda x: torch.addcmul(x, x.sigmoid(), x, value=0.5),
    "max_of_width": lambda x: x - x.max(-1, keepdim=True).values,
    "batch_and_row_in_one": lambda x: x.reshape(-1, 2, 8).transpose(1, 2).reshape(x.shape),
    "min_of_two": lambda x: torch.min(x, x.new_tensor(1.0)) + torch.max(x, x * x),
    "gate_of_row": lambda x: x * x.mean(-1, keepdim=True).sigmoid(),
}
# Row r depends on other rows, on the number of rows or on other elements: nothing here may be pushed below.
MIXING: dict[str, Branch] = {
    "mean_of_rows": lambda x: x + x.mean(1, keepdim=True),
    "cumsum_of_rows": lambda x: x.cumsum(1) / 4,
    "roll_rows": lambda x: x.roll(1, dims=1),
    "flip_rows": lambda x: x.flip(1),
    "softmax_of_rows": lambda x: x.softmax(1) * 4,
    "shift": lambda x: x + F.pad(x, (0, 0, 1, 0))[:, :-1],
    "shift_by_cat": lambda x: torch.cat([x[:, :1], x[:, :-1]], 1) + x,
    "sort_rows": lambda x: x.sort(dim=1)[0],
    "layer_norm_of_rows": lambda x: F.layer_norm(x.mT, (x.shape[1],)).mT,
    "max_of_rows": lambda x: x - x.max(1, keepdim=True)[0],
    "norm_of_all": lambda x: x / x.abs().amax((1, 2), keepdim=True).clamp_min(0.1),
    "max_of_everything": lambda x: x / x.abs().max().clamp_min(0.1),
    "mean_of_batch": lambda x: x + x.mean(0, keepdim=True),
    "flip_batch": lambda x: x.flip(0) + x,
    "number_of_rows": lambda x: x * x.shape[1] / 8,
    "last_row": lambda x: x + x[:, -1:],
    "first_row": lambda x: x * x[:, :1].sigmoid(),
    "row_of_index": lambda x: x + x[:, torch.arange(x.shape[1] - 1, -1, -1)],
    "gather_rows": lambda x: x.gather(1, torch.zeros_like(x, dtype=torch.int64)) + x,
    "rows_in_place": rows_in_place,
    "strange_view": lambda x: x.transpose(1, 2).reshape(x.shape),
    "strange_view_of_batch": lambda x: x.transpose(0, 1).reshape(x.shape),
    "triangle": lambda x: torch.ones(x.shape[1], x.shape[1]).tril() @ x / 4,
    "rows_by_einsum": lambda x: torch.einsum("bsw,btw->bsw", x, x) / 8,
    "variance_of_rows": lambda x: x / (1 + x.var(1, keepdim=True, unbiased=False)),
    "norm_of_two": lambda x: F.layer_norm(x.unflatten(-1, (2, 8)).transpose(1, 2), (8,)).transpose(1, 2).flatten(2),
    "argmax_of_rows": lambda x: x + (x.argmax(1, keepdim=True) == positions(x)).to(x.dtype),
    "any_of_rows": lambda x: torch.where((x > 2).any(1, keepdim=True), x, -x),
    "conv_of_width": lambda x: F.avg_pool1d(x, 3, 1, 1),
    "pool_of_rows": lambda x: F.avg_pool1d(x.mT, 3, 1, 1).mT,
    "topk_of_rows": lambda x: x + x.topk(1, dim=1).values,
    "diff_of_rows": lambda x: F.pad(x.diff(dim=1), (0, 0, 1, 0)),
}


def random_branch(rng: Random, mixing: float) -> tuple[Branch, list[str]]:
    """An FFN: some steps with matrix products between them."""
    steps: list[Branch] = [norm] if rng.random() < 0.8 else []
    names: list[str] = []
    for _ in range(rng.randint(1, 3)):
        table = MIXING if rng.random() < mixing else BY_ROW
        name = rng.choice(sorted(table))
        names.append(name)
        steps.append(table[name])
        steps.append(_product(rng))

    def branch(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return branch, names


def _product(rng: Random) -> Branch:
    w, b = weight(rng, WIDTH, WIDTH), weight(rng, WIDTH)
    kind = rng.randint(0, 5)
    if kind == 0:
        return lambda x: x @ w.T
    if kind == 1:
        return lambda x: torch.einsum("bsw,vw->bsv", x, w)
    if kind == 2:
        return lambda x: torch.addmm(b, x.view(-1, x.shape[-1]) if x.is_contiguous() else x.flatten(0, 1), w).view(
            x.shape
        )
    if kind == 3:
        return lambda x: F.linear(x.flatten(0, 1), w, b).unflatten(0, (x.shape[0], x.shape[1]))
    if kind == 4:
        return lambda x: torch.bmm(x, w.expand(x.shape[0], -1, -1))
    return lambda x: F.linear(x, w, b)


def random_attention(rng: Random) -> tuple[Branch, str]:
    """An attention of a random spelling."""
    wq, wk, wv, wo = (weight(rng, WIDTH, WIDTH) for _ in range(4))
    fused = weight(rng, 3 * WIDTH, WIDTH)
    kind = rng.choice(sorted(ATTENTIONS))
    scores, way = ATTENTIONS[kind], rng.randint(0, 4)
    gate = rng.random() < 0.2

    def branch(h: Tensor) -> Tensor:
        x = norm(h)
        if way == 0:
            q, k, v = F.linear(x, fused).chunk(3, -1)
        elif way == 1:
            q, k, v = F.linear(x, fused).view(*x.shape[:2], 3, -1).unbind(2)
        elif way == 2:
            q, k, v = F.linear(x, fused).split(WIDTH, dim=-1)
            q = q * positions(q).cos()
        elif way == 3:
            q, k, v = (F.linear(h, w) for w in (wq, wk, wv))
            q, k = norm(q), norm(k)
        else:
            q, k, v = F.linear(x, wq), F.linear(x, wk), F.linear(x, wv)
        out = F.linear(scores(q, k, v), wo)
        return out * F.linear(x, wq).sigmoid() if gate else out

    return branch, kind


def _causal(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def _by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q), heads(k), heads(v)
    s = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~_causal(q.shape[2]), float("-inf"))
    return unheads(s.softmax(-1, dtype=torch.float32) @ v)


def _capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q), heads(k), heads(v)
    s = torch.tanh(torch.matmul(q, k.mT) / 5) * 5
    s = s + torch.full((q.shape[2], q.shape[2]), -1e9).triu(1)
    return unheads(F.dropout(s.softmax(-1), 0.1, training=False).matmul(v))


def _alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = torch.arange(q.shape[1])
    bias = -(p[:, None] - p[None]).clamp_min(0).float()[None] * torch.tensor([0.5, 0.1])[:, None, None]
    bias = bias.masked_fill(p[None] > p[:, None], float("-inf"))
    return unheads(F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=bias[None]))


def _in_one_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b = q.shape[0]
    q, k, v = (heads(t).reshape(b * 2, t.shape[1], -1) for t in (q, k, v))
    s = torch.baddbmm(torch.zeros(1, 1, 1).expand(b * 2, q.shape[1], q.shape[1]), q, k.mT, beta=0.0, alpha=0.3)
    s = s.masked_fill(~_causal(q.shape[1]), -1e9).softmax(-1)
    return unheads(torch.bmm(s, v).view(b, 2, q.shape[1], -1))


def _einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (2, -1)) for t in (q, k, v))
    s = torch.einsum("bqhd,bkhd->bhqk", q, k).masked_fill(~_causal(q.shape[1]), -1e9).softmax(-1)
    return torch.matmul(s, v.transpose(1, 2)).transpose(1, 2).flatten(2)


def _sinks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads(q), heads(k), heads(v)
    s = (q @ k.mT * 0.4).masked_fill(~_causal(q.shape[2]), -1e9)
    s = torch.cat([s, torch.tensor([0.3, -0.2]).view(1, 2, 1, 1).expand(q.shape[0], -1, q.shape[2], -1)], -1)
    return unheads((s - s.max(-1, keepdim=True).values).softmax(-1)[..., :-1] @ v)


def _window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = torch.arange(q.shape[1])
    allowed = (p[None] <= p[:, None]) & (p[None] > p[:, None] - 4)
    return unheads(F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=allowed))


ATTENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "causal": lambda q, k, v: unheads(F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=True)),
    "open": lambda q, k, v: unheads(F.scaled_dot_product_attention(heads(q), heads(k), heads(v), scale=0.2)),
    "one_key_head": lambda q, k, v: unheads(
        F.scaled_dot_product_attention(
            heads(q), heads(k, 1)[..., :8], heads(v, 1)[..., :8], is_causal=True, enable_gqa=True
        )
    ),
    "by_hand": _by_hand,
    "capped": _capped,
    "alibi": _alibi,
    "in_one_batch": _in_one_batch,
    "einsum": _einsum,
    "window": _window,
    "sinks": _sinks,
}


def random_program(rng: Random, mixing: float = 0.25) -> tuple[Program, str]:
    """A decoder of one to three layers, and a line that says what is in it."""
    layers = []
    words = []
    for _ in range(rng.randint(1, 3)):
        attention, kind = random_attention(rng)
        ffn, names = random_branch(rng, mixing)
        way = rng.choice(("serial", "serial", "parallel", "after", "norm_after", "deepstack", "scaled"))
        layers.append((attention, ffn, way))
        words.append(f"{way}({kind}; {', '.join(names)})")

    def program(h: Tensor, join: Join, features: Tensor) -> Tensor:
        for i, (attention, ffn, way) in enumerate(layers):
            if way == "parallel":
                h = join(h, i, attention=attention(h), ffn=ffn(h))
                continue
            if way == "norm_after":
                h = join(h, i, attention=norm(attention(h)))
                h = join(h, i, ffn=norm(ffn(h)))
                continue
            factor = 0.3 if way == "scaled" else 1
            h = join(h, i, attention=factor * attention(h))
            h = join(h, i, ffn=ffn(h) * factor)
            if way == "deepstack":
                h = h + features
            elif way == "after":
                h = norm(h)
        return norm(h)

    return program, " ".join(words)
