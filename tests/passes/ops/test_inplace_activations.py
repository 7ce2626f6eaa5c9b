"""An activation that writes in place, in whatever way it is told to: ``inplace`` by name, by position, by its module.

``nn.LeakyReLU(inplace=True)`` hands ``inplace`` over by position. Keys that are activated queries, as here, share the
memory of the queries then, and a selection of query rows must not be made before the write.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opskip_compile as opskip
from tests.helpers.decoders import HEADS, WIDTH, Join, W, add, gated, norm, oracle

pytestmark = pytest.mark.usefixtures("fresh")
Activation = Callable[[Tensor], Tensor]


def assigned(y: Tensor) -> Tensor:
    y[..., :4] = 0.5
    return y


MODULES: dict[str, Callable[[bool], nn.Module]] = {
    "LeakyReLU": lambda inplace: nn.LeakyReLU(0.1, inplace=inplace),
    "ELU": lambda inplace: nn.ELU(0.7, inplace=inplace),
    "CELU": lambda inplace: nn.CELU(0.7, inplace=inplace),
    "SELU": lambda inplace: nn.SELU(inplace=inplace),
    "ReLU": lambda inplace: nn.ReLU(inplace=inplace),
    "ReLU6": lambda inplace: nn.ReLU6(inplace=inplace),
    "RReLU": lambda inplace: nn.RReLU(0.1, 0.3, inplace=inplace).eval(),
    "Hardtanh": lambda inplace: nn.Hardtanh(-0.5, 0.5, inplace=inplace),
    "Hardswish": lambda inplace: nn.Hardswish(inplace=inplace),
    "Hardsigmoid": lambda inplace: nn.Hardsigmoid(inplace=inplace),
    "SiLU": lambda inplace: nn.SiLU(inplace=inplace),
    "Mish": lambda inplace: nn.Mish(inplace=inplace),
    "Threshold": lambda inplace: nn.Threshold(0.1, -0.3, inplace=inplace),
    "Dropout": lambda inplace: nn.Dropout(0.5, inplace=inplace).eval(),
}
IN_PLACE: dict[str, Activation] = {
    **{f"nn.{name}": make(True) for name, make in MODULES.items()},
    # By position.
    "leaky_relu 2": lambda y: F.leaky_relu(y, 0.1, True),
    "elu 2": lambda y: F.elu(y, 0.7, True),
    "celu 2": lambda y: F.celu(y, 0.7, True),
    "selu 1": lambda y: F.selu(y, True),
    "relu 1": lambda y: F.relu(y, True),
    "relu6 1": lambda y: F.relu6(y, True),
    "rrelu 4": lambda y: F.rrelu(y, 0.1, 0.3, False, True),
    "hardtanh 3": lambda y: F.hardtanh(y, -0.5, 0.5, True),
    "hardswish 1": lambda y: F.hardswish(y, True),
    "hardsigmoid 1": lambda y: F.hardsigmoid(y, True),
    "silu 1": lambda y: F.silu(y, True),
    "mish 1": lambda y: F.mish(y, True),
    "threshold 3": lambda y: F.threshold(y, 0.1, -0.3, True),
    "dropout 3": lambda y: F.dropout(y, 0.5, False, True),
    # By name.
    "leaky_relu": lambda y: F.leaky_relu(y, negative_slope=0.1, inplace=True),
    "elu": lambda y: F.elu(y, inplace=True, alpha=0.7),
    "celu": lambda y: F.celu(input=y, inplace=True),
    "selu": lambda y: F.selu(y, inplace=True),
    "relu": lambda y: F.relu(input=y, inplace=True),
    "relu6": lambda y: F.relu6(y, inplace=True),
    "rrelu": lambda y: F.rrelu(y, training=False, inplace=True),
    "hardtanh": lambda y: F.hardtanh(y, min_val=-0.5, inplace=True),
    "hardswish": lambda y: F.hardswish(y, inplace=True),
    "hardsigmoid": lambda y: F.hardsigmoid(y, inplace=True),
    "silu": lambda y: F.silu(y, inplace=True),
    "mish": lambda y: F.mish(y, inplace=True),
    "threshold": lambda y: F.threshold(y, 0.1, value=-0.3, inplace=True),
    "dropout": lambda y: F.dropout(y, training=False, inplace=True),
    # Other ways to write.
    "relu_": lambda y: y.relu_(),
    "F.relu_": F.relu_,
    "F.leaky_relu_": lambda y: F.leaky_relu_(y, 0.1),
    "imul": lambda y: operator.imul(y, 0.5),
    "out": lambda y: torch.sin(y, out=y),
    "out by name": lambda y: torch.mul(input=y, other=y.cos(), out=y),
    "out in linalg": lambda y: torch.special.expit(y, out=y),
    "clamp_": lambda y: torch.clamp_(y, -0.5, 0.5),
    "copy_": lambda y: y.copy_(y.flip(-1)),
    "assignment": assigned,
}
LOWERED = ("nn.LeakyReLU", "nn.Hardswish", "leaky_relu 2", "relu", "out")


def decoder(activation: Activation, *, queries_first: bool = False) -> Callable[[Tensor, Join], Tensor]:
    """Keys are activated queries; whether in place or not, shows in the queries."""

    def program(h: Tensor, join: Join) -> Tensor:
        for i in range(3):
            x = norm(h)
            y = F.linear(x, W[i, 0])
            early = y.view(*y.shape[:2], HEADS, -1) if queries_first else None
            k = activation(y)
            q = early if early is not None else y.view(*y.shape[:2], HEADS, -1)
            v = F.linear(x, W[i, 2])
            q, k, v = (t.reshape(*h.shape[:2], HEADS, -1).transpose(1, 2) for t in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = join(h, i, attention=F.linear(out.transpose(1, 2).reshape(h.shape), W[i, 3]))
            h = join(h, i, ffn=gated(norm(h), i))
        return norm(h)

    return program


def compare(program: Callable[[Tensor, Join], Tensor], lower: str) -> None:
    """The compiled program gives what the definition gives, and has skipped what it was told to."""
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(2, 11, WIDTH, generator=generator)
    visual = torch.zeros(2, 11, dtype=torch.bool)
    visual[:, 2:8] = True
    visual[1, 3:5] = False

    def marked(h: Tensor, visual: Tensor) -> Tensor:
        return program(opskip.mark_visual(h, visual), add)

    options = {"schedule": "transform:1-2", "lower": lower}
    got = torch.compile(marked, backend="opskip", options=options)(h.clone(), visual)
    report = opskip.last_report()
    skipped = [f"{op.layer}.{op.kind}" for op in report.operators if op.skipped]
    assert skipped == ["1.attention", "2.attention"], report.misses
    want = program(h.clone(), oracle(visual, skipped))
    off = (got - want).abs().amax(-1) / want.abs().max()
    assert off[~visual].max() <= 1e-5, "text rows"
    assert off.max() <= 1e-5
    assert not torch.allclose(program(h.clone(), add), want, 1e-3, 1e-3), "skipping shows"


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_activation(name: str) -> None:
    compare(decoder(IN_PLACE[name]), "eager")


@pytest.mark.parametrize("name", ["nn.LeakyReLU", "leaky_relu 2", "relu", "relu_", "out", "assignment"])
def test_queries_that_were_viewed_before(name: str) -> None:
    compare(decoder(IN_PLACE[name], queries_first=True), "eager")


@pytest.mark.parametrize("name", MODULES)
def test_out_of_place_activation(name: str) -> None:
    compare(decoder(MODULES[name](False)), "eager")


@pytest.mark.inductor
@pytest.mark.parametrize("name", LOWERED)
def test_in_place_activation_in_inductor(name: str) -> None:
    compare(decoder(IN_PLACE[name]), "inductor")
