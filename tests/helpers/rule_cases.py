"""The table behind `test_rules.py`: for each rule functions that it pushes a selection through.

`rule_refusals` has the functions where a rule has to decline.

A shape is text, one letter for each dimension: B batch, S sequence 7, W width 8, H heads 2, D head width 4, V 9, K 5
(keys or features), or a number. A letter before a colon names the type: ``i`` int64, ``b`` bool, ``m`` float.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opskip_compile.passes.collectives import EXCHANGES, all_gather, all_reduce, reduce_scatter

BOTH, ONE, THREE = (1, 3), (1,), (3,)
sdpa = F.scaled_dot_product_attention


@dataclass(frozen=True)
class Case:
    """``fn`` of inputs of these ``shapes``; dimension ``dim`` of its result carries the rows."""

    names: str
    fn: Callable[..., Any]
    shapes: str = "BSW"
    dim: int = 1
    batches: tuple[int, ...] = BOTH
    reason: str = ""

    def __str__(self) -> str:
        return self.names.replace(" ", "+")


def flat(x: Tensor) -> Tensor:
    """One row for each token of a batch of one."""
    return x.reshape(x.shape[1], x.shape[2])


for exchange in EXCHANGES:  # captured as the one call that `lift_collectives` makes of two
    torch.compiler.allow_in_graph(exchange)
ALONE = "0"  # the group of one process that the tests are in


def scattered(x: Tensor, dim: int) -> Tensor:
    """As PyTorch writes it: parts along ``dim``, put one after the other along dimension 0, which are handed out."""
    return reduce_scatter(torch.cat(torch.chunk(x, 1, dim=dim)), "sum", 1, ALONE)


ATTENTION = "BHSD BHKD BHKD"
NO_BATCH = "has no batch dimension in front"
VIEW = "the view splits or merges the rows"
SDPA = "scaled_dot_product_attention"
REDUCTIONS = ("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "prod")
NOTHING = "elements of the batch: no operand carries the rows"

PUSHED = (
    # Views of one tensor: heads, with -1 in each place, sizes in one sequence or not.
    Case("view", lambda x: x.view(x.shape[0], x.shape[1], 2, 4)),
    Case("view", lambda x: x.view((-1, x.shape[1], 2, 4))),
    Case("view", lambda x: x.view(x.shape[0], -1, 2, 4)),
    Case("view", lambda x: x.view(*x.shape[:-1], -1, 4)),
    Case("view transpose", lambda x: x.view(x.shape[0], x.shape[1], 2, -1).transpose(1, 2), dim=2),
    Case("reshape", lambda x: x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1), "BHSD"),
    Case("reshape", lambda x: torch.reshape(input=x, shape=(x.shape[0], x.shape[1], 4, 2))),
    Case("reshape", lambda x: x.reshape(x.shape[1], 8), dim=0, batches=ONE),
    Case("flatten unflatten", lambda x: x.unflatten(-1, (2, -1)).flatten(2)),
    Case("unflatten flatten", lambda x: x.unflatten(1, (1, 2)).flatten(1, 2), "BHSD", dim=2),
    Case(
        "transpose swapaxes",
        lambda x: torch.swapaxes(x.transpose(1, -1), axis0=0, axis1=1),
        dim=2,
        batches=ONE,
    ),
    Case("swapaxes", lambda x: x.swapaxes(1, 2), dim=2),
    Case("t", lambda x: flat(x).t(), batches=ONE),
    Case("mT", lambda x: x.relu().mT, dim=2),
    Case("permute", lambda x: x.permute(0, 2, -3, 3), "BHSD"),
    Case("permute", lambda x: torch.permute(x, dims=(0, 2, 1, 3)), "BHSD"),
    Case("unsqueeze", lambda x: x.unsqueeze(1), dim=2),
    Case("unsqueeze squeeze", lambda x: x.unsqueeze(-1).squeeze(-1)),
    Case("squeeze", lambda x: x.squeeze(1), "B1SW"),
    Case("squeeze", lambda x: x.squeeze(2)),
    Case("expand", lambda x: x[:, None].expand(-1, 2, -1, -1), dim=2),
    Case("expand", lambda x: x[:, None].expand(x.shape[0], 2, x.shape[1], 8), dim=2),
    Case("broadcast_to", lambda x: x.unsqueeze(1).broadcast_to((x.shape[0], 2, x.shape[1], 8)), dim=2),
    Case("getitem", lambda x: x[..., ::2]),
    Case("getitem", lambda x: x[:, None, :, 2:5], dim=2),
    Case("getitem", lambda x: x[:, 1, :, :3], "BHSD"),
    Case("getitem", lambda x: x[:, :, None, 0]),
    Case("getitem", lambda x: x[..., None, :, -1], dim=2),
    # Cuts and joins.
    Case("chunk getitem", lambda x: torch.mul(*x.relu().chunk(2, dim=-1))),
    Case("split", lambda x: torch.split(x, [2, 6], dim=-1)[1]),
    Case("tensor_split", lambda x: x.tensor_split(2, -1)[0]),
    Case("unbind", lambda x: x.unflatten(-1, (2, 4)).unbind(2)[1]),
    Case("unbind", lambda x: x.unbind(1)[1], "BHSD"),
    Case("cat", lambda x, y: torch.cat((-y, x), dim=-1), "BSW BSW"),
    Case("cat", lambda x, y: torch.cat((x, y), axis=2), "BSW BSD"),
    Case("stack", lambda x, y: torch.stack((x, y), 1), "BSW BSW", dim=2),
    Case("stack", lambda x, y: torch.stack((x, y), dim=-1).flatten(-2), "BSW BSW"),
    # Reductions and norms.
    *(Case(name, lambda x, f=f: f(x, -1)) for name, f in {"all": torch.all, "any": torch.any}.items()),
    *(
        case
        for name in REDUCTIONS
        for case in (
            Case(name, partial(getattr(torch, name), dim=-1, keepdim=True)),
            Case(name, partial(getattr(torch, name), dim=1), "BHSD"),
        )
    ),
    Case("mean", lambda x: x.mean((1, -1)), "BHSD"),
    *(Case(n, partial(getattr(torch, n), dim=-1)) for n in ("softmax", "log_softmax", "cumsum", "cumprod")),
    Case("softmax", lambda x: F.softmax(x, dim=1, dtype=torch.float64), "BHSD", dim=2),
    Case("layer_norm", lambda x, w: F.layer_norm(x, (8,), w, w), "BSW W"),
    Case("einsum", lambda q, k: torch.einsum("bhqd,bhkd->bqhk", q, k), "BHSD BHKD"),
    Case("einsum", lambda x, w: torch.einsum("bsw, wk -> bsk", [x, w]), "BSW WK"),
    Case("slice", lambda x: torch.ops.aten.slice(x, -1, 2, 5)),
    Case("rms_norm", lambda x, w: F.rms_norm(x, w.shape, w), "BSW W"),
    # Products.
    Case("linear", lambda x, w: F.linear(x, w), "BSW KW"),
    Case("linear", lambda x, w, b: F.linear(x, w, bias=b), "BHSD KD K", dim=2),
    Case("matmul", lambda x, y: x @ y, "BSW BWK"),
    Case("matmul", lambda x, y: x @ y, "BSW WK"),
    Case("matmul", lambda x, y: torch.matmul(x, y.transpose(2, 3)), "BHSD BHKD", dim=2),
    Case("matmul", lambda x, y: torch.bmm(x, mat2=y), "BSW BWK"),
    Case("matmul", lambda x, y: torch.matmul(x, y), "1SW BWK"),
    Case("matmul", lambda x, y: x.unsqueeze(2) @ y, "BSW WK"),
    Case("addmm", lambda x, w, b: torch.addmm(b, flat(x), w), "BSW WK K", dim=0, batches=ONE),
    Case("embedding", lambda x, w: F.embedding(x, w), "i:BS VW"),
    Case("embedding", lambda x, w: torch.embedding(w, x), "i:BS VW"),
    Case("type_as", lambda x, y: x.type_as(y), "BSW m:BKW"),
    # Attention.
    Case(SDPA, lambda q, k, v: sdpa(q, k, v), ATTENTION, dim=2),
    Case(SDPA, lambda q, k, v: sdpa(query=q, key=k, value=v, scale=0.3), ATTENTION, dim=2),
    *(
        Case(SDPA, lambda q, k, v, m: sdpa(q, k, v, m), f"{ATTENTION} {mask}", dim=2)
        for mask in ("b:B1SK", "b:11SK", "b:B11K", "b:BHSK", "m:B1SK", "m:1HSK")
    ),
    Case(SDPA, partial(sdpa, is_causal=True), "BHSD BHSD BHSD", dim=2),
    Case(SDPA, lambda q, k, v: sdpa(q, k, v, None, 0.0, True), ATTENTION, dim=2),
    Case(SDPA, partial(sdpa, is_causal=True, enable_gqa=True), "B4SD BHSD BHSD", dim=2),
    Case(
        SDPA,
        lambda q, k, v, m: sdpa(q, k, v, attn_mask=m, enable_gqa=True),
        "B4SD BHKD BHKD b:B1SK",
        dim=2,
    ),
    # Choices and lookups.
    Case("topk getitem", lambda x: x.topk(3, dim=-1)[0]),
    Case("max getitem", lambda x: x.max(-1, keepdim=True)[0]),
    Case("max getitem", lambda x: x.max(1).values, "BHSD"),
    Case("min getitem", lambda x: torch.min(x, dim=1, keepdim=True)[1], "BHSD", dim=2),
    Case("max", lambda x, y: torch.max(x, y), "BSW W"),
    Case("min", lambda x, y: torch.min(x, other=y), "BSW BSW"),
    Case("topk getitem", lambda x: torch.topk(x, 2, 1)[1], "BHSD", dim=2),
    Case("sort getitem", lambda x: x.sort()[0]),
    Case("argsort", lambda x: x.argsort(-1)),
    Case("argmax", lambda x: x.argmax(-1)),
    Case("argmax", lambda x: x.argmax(1, keepdim=True), "BHSD", dim=2),
    Case("argmax", lambda x: x.argmax(1), "BHSD"),
    Case("gather", lambda x: x.gather(-1, x.argsort(-1)[..., :3])),
    Case("scatter", lambda x: x.scatter(2, x.argsort(-1)[..., :3], x.cos())),
    Case("scatter", lambda x: x.scatter(-1, x.argsort(-1)[..., :3], 1.0)),
    Case("one_hot", lambda x: F.one_hot(x, 9), "i:BS"),
    Case("getitem", lambda i, table: table[i], "i:BS VW"),
    Case("repeat_interleave", lambda x: x.repeat_interleave(3, dim=-1)),
    Case("zeros_like", lambda x, y: torch.zeros_like(x.sin()) + y, "BSW BSW"),
    Case("ones_like full_like", lambda x: torch.ones_like(x) * x + torch.full_like(x, 2.0)),
    Case("view_as_complex view_as_real", lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))))),
    Case("transpose to", lambda x: x.transpose(1, 2).to(torch.float64, memory_format=torch.contiguous_format), dim=2),
    Case("dropout", lambda x: F.dropout(x, 0.5, training=False)),
    # Other views, cuts, reductions and choices.
    Case("movedim", lambda x: x.movedim(1, 2), "BHSD"),
    Case("movedim", lambda x: x.movedim((3, 1), (1, 2)), "BHSD", dim=3),
    Case("adjoint", lambda x: x.relu().adjoint(), dim=2),
    Case("narrow", lambda x: x.narrow(2, 1, 3)),
    Case("select", lambda x: x.select(1, 1), "BHSD"),
    Case("flip", lambda x: x.flip(-1)),
    Case("roll", lambda x: x.roll(2, -1)),
    *(Case(n, partial(getattr(torch, n), dim=-1)) for n in ("nansum", "nanmean", "logcumsumexp")),
    Case("softmin", lambda x: F.softmin(x, dim=-1)),
    Case("count_nonzero", lambda x: torch.count_nonzero(x > 0.4, dim=-1)),
    Case("norm", lambda x: x.norm(dim=-1, keepdim=True)),
    Case("vector_norm", lambda x: torch.linalg.vector_norm(x, 2, -1)),
    Case("normalize", lambda x: F.normalize(x, dim=-1)),
    Case("cummax getitem", lambda x: x.cummax(-1)[0]),
    Case("cummin getitem", lambda x: x.cummin(-1)[1]),
    Case("kthvalue getitem", lambda x: x.kthvalue(2, -1)[0]),
    Case("argmin", lambda x: x.argmin(-1, keepdim=True)),
    Case("index_select", lambda x, i: x.index_select(-1, i), "BSW i:5"),
    Case("scatter_add", lambda x: x.scatter_add(2, x.argsort(-1)[..., :3], x.cos())),
    Case("take_along_dim", lambda x: x.take_along_dim(x.argsort(-1), -1), batches=THREE),
    Case("dropout", lambda x: F.dropout(x, p=0.0)),
    # Exchanges between processes.
    Case("opskip::all_reduce", lambda x: all_reduce(x, "sum", ALONE)),
    Case("opskip::all_reduce", lambda x: all_reduce(x, "max", ALONE), "BHSD", dim=2),
    Case("opskip::reduce_scatter chunk cat", partial(scattered, dim=-1), batches=ONE),
    Case("opskip::all_gather", lambda x: all_gather(x, 1, ALONE), batches=ONE),
)

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(torch, name)
        for name in (
            "neg abs square sqrt rsqrt exp exp2 log reciprocal sign floor ceil round trunc sin cos tan erf erfc log1p "
            "expm1 sigmoid tanh logical_not isnan isinf isfinite nan_to_num positive clone log2 log10 frac sgn sinc "
            "sinh cosh asin acos atan asinh atanh digamma lgamma i0 deg2rad rad2deg erfinv isposinf isneginf signbit "
            "logit"
        ).split()
    },
    **{
        name: getattr(F, name)
        for name in (
            "relu silu gelu softplus leaky_relu elu selu mish hardswish hardsigmoid relu6 hardtanh hardshrink softsign "
            "celu softshrink tanhshrink"
        ).split()
    },
    **{
        name: lambda x, name=name: getattr(x, name)()
        for name in "half bfloat16 double int long bool contiguous detach".split()
    },
    "float": lambda x: x.double().float(),
    "alias": torch.ops.aten.alias.default,
    "to": lambda x: x.to(torch.float16),
    "type": lambda x: x.type(torch.float64),
    "log_sigmoid": F.logsigmoid,
    "threshold": lambda x: F.threshold(x, 0.4, 20.0),
    "type_as": lambda x: x.type_as(x.double()),
    "acosh": lambda x: torch.acosh(x + 1),
    "real": lambda x: torch.real(x.exp()),
    "conj": lambda x: torch.conj(x.exp()),
    "imag": lambda x: torch.complex(x, x).imag,
    "clamp": lambda x: torch.clamp(x, 0.2, max=0.7),
    "clamp_min": lambda x: x.clamp_min(0.4),
    "clamp_max": lambda x: x.clamp_max(0.4),
    "pow": lambda x: x**2,
    "invert": lambda x: ~(x > 0.4),
    "bitwise_not": lambda x: torch.bitwise_not(x > 0.4),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: getattr(operator, name) for name in "add sub mul floordiv mod eq ne lt le gt ge".split()},
    "div": operator.truediv,
    "remainder": torch.remainder,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    **{
        name: getattr(torch, name)
        for name in (
            "fmod fmax fmin atan2 hypot logaddexp logaddexp2 copysign nextafter heaviside xlogy float_power isclose "
            "complex polar rsub"
        ).split()
    },
    **{name: lambda x, y, name=name: getattr(torch, name)((9 * x).long(), (9 * y).long()) for name in ("gcd", "lcm")},
    "lshift": lambda x, y: torch.bitwise_left_shift((9 * x).long(), (9 * y).long()),
    "rshift": lambda x, y: (9 * x).long() >> (9 * y).long(),
    "ldexp": lambda x, y: torch.ldexp(x, (3 * y).int()),
    "and": lambda x, y: (x > 0.4) & (y > 0.4),
    "or": lambda x, y: torch.logical_or(x > 0.4, y > 0.4),
    "xor": lambda x, y: (x > 0.4) ^ (y > 0.4),
    "where": lambda x, y: torch.where(x > 0.4, x, y),
    "masked_fill": lambda x, y: x.masked_fill(y > 0.4, -1.0),
}
TERNARY = {"addcmul": torch.addcmul, "addcdiv": torch.addcdiv}
POINTWISE = {
    **{name: (1, fn) for name, fn in UNARY.items()},
    **{name: (2, fn) for name, fn in BINARY.items()},
    **{name: (3, fn) for name, fn in TERNARY.items()},
}

# A value that is only one row long is left alone, and one operand may be broadcast over the batch.
PUSHED += (
    *(Case(name, fn, " ".join(["BSW"] * k), batches=THREE) for name, (k, fn) in POINTWISE.items()),
    Case("add", lambda x, y: x + y, "BSW 1SW"),
    Case("add", lambda x, y: x + y, "BSW W"),
    Case("mul", lambda x, y: x * y, "BHSD B11D", dim=2),
    Case("add", lambda x, y: torch.add(x, y, alpha=2), "BSW B1W"),
)
