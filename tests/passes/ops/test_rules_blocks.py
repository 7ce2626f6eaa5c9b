"""Whole pieces of decoders under one selection: rotary embedding, gated FFN, attention; and values that the model
mutates in place, which are a barrier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.graphs import assert_rows, push
from tests.passes.ops.test_rules import VISUAL, make

MUTATED = "it is mutated in place, or may share memory with something that is"
BATCHES = pytest.mark.parametrize("batch", [1, 3])


def inputs(batch: int, shapes: str) -> list[Tensor]:
    torch.manual_seed(0)
    return [make(shape, batch) for shape in shapes.split()]


def rotate_half(x: Tensor) -> Tensor:
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


def rotary(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return (q * cos) + (rotate_half(q) * sin)


def gated_ffn(x: Tensor, norm: Tensor, up: Tensor, gate: Tensor, down: Tensor) -> Tensor:
    """With the RMSNorm of transformers in front: to float32 and back."""
    h = x.to(torch.float32)
    h = norm * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
    return F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


def fused_ffn(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.matmul(q, k.transpose(2, 3)) * 0.5
    scores = scores + mask[:, :, :, : k.shape[-2]]
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = F.dropout(weights, p=0.0, training=False)
    return torch.matmul(weights, v).transpose(1, 2).contiguous().flatten(2)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q = q.view(*q.shape[:2], -1, 4).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=mask is None)
    return out.transpose(1, 2).contiguous().reshape(*q.shape[::2], -1)


BLOCKS = {
    "rotary-each-batch": (rotary, "BHSD BSD BSD", 2),
    "rotary-one-batch": (rotary, "BHSD 1SD 1SD", 2),
    "gated-ffn": (gated_ffn, "BSW W KW KW WK", 1),
    "fused-gate-up": (fused_ffn, "BSW WW WD", 1),
    "eager-attention": (eager_attention, "BHSD BHKD BHKD m:B1SK", 1),
    "eager-attention-one-mask": (eager_attention, "BHSD BHKD BHKD m:11SK", 1),
    "sdpa-attention": (sdpa_attention, "BSW BHKD BHKD b:B1SK", 1),
}


@BATCHES
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_block_runs_on_kept_rows(name: str, dynamic: bool, batch: int) -> None:
    fn, shapes, dim = BLOCKS[name]
    torch.manual_seed(0)
    xs = [make(shape, batch, dynamic) for shape in shapes.split()]
    visual = VISUAL[:batch].clone()
    if dynamic:
        torch._dynamo.mark_dynamic(visual, 1)
    done = push(fn, visual, *xs, dim=dim)
    if name == "rotary-one-batch" and batch == 3:
        assert {s.reason for s in done.stops} <= {"elements of the batch: no operand carries the rows"}
    else:
        assert done.stops == []
        assert set(done.selected) == {"input"}
    assert_rows(done.result, fn(*xs), visual, dim)


@BATCHES
def test_view_of_strided_rows(batch: int) -> None:
    (x,) = inputs(batch, "BSHD")
    # (batch, heads, sequence, head width) in the memory order of the projection: selected rows lose that order.
    done = push(lambda x: x.transpose(1, 2).view(x.shape[0], -1, 8), VISUAL[:batch], x.transpose(1, 2))
    assert done.selected == ["input"]
    assert_rows(done.result, x.flatten(2), VISUAL[:batch])


def test_squeeze_with_one_kept_row() -> None:
    (x,) = inputs(1, "BSW")
    result = push(lambda x: x.squeeze(1) + 1, VISUAL[1:2], x).result
    assert result.shape == (1, 2, 8), "a row that is not live stands beside the one that is kept"


def written_itself(x: Tensor, y: Tensor) -> Tensor:
    z = x + 1
    z += y
    return F.relu(z)


def base_written_before(x: Tensor, y: Tensor) -> Tensor:
    base = x + 1
    z = base.unflatten(-1, (2, 4))
    base[:, 0] = y[:, 1]
    return F.relu(z)


def base_written_after(x: Tensor, y: Tensor) -> Tensor:
    base = x + 1
    z = base.unflatten(-1, (2, 4))
    out = F.relu(z)
    base.add_(y)
    return out


def part_written(x: Tensor, y: Tensor) -> Tensor:
    first, second = (x + 1).tensor_split(2, -1)
    first.mul_(3)
    return F.relu(second)


def written_as_out(x: Tensor, y: Tensor) -> Tensor:
    base = x + 1
    z = base[..., 1:]
    torch.mul(x, y, out=base)
    return F.relu(z)


@BATCHES
@pytest.mark.parametrize(
    ("fn", "operation"),
    [
        (written_itself, "add"),
        (base_written_before, "unflatten"),
        (base_written_after, "unflatten"),
        (part_written, "getitem"),
        (written_as_out, "getitem"),
    ],
)
def test_mutated_value_is_a_barrier(fn: Callable[..., Tensor], operation: str, batch: int) -> None:
    x, y = inputs(batch, "BSW BSW")
    done = push(fn, VISUAL[:batch], x, y)
    assert [(s.operation, s.reason) for s in done.stops] == [(operation, MUTATED)]
    assert done.selected == [operation]
    assert_rows(done.result, fn(x, y), VISUAL[:batch])


@BATCHES
def test_value_written_after_its_reader_is_read_in_time(batch: int) -> None:
    def fn(x: Tensor, y: Tensor) -> Tensor:
        z = x + 1
        out = F.relu(z)
        z.add_(y)
        return out

    x, y = inputs(batch, "BSW BSW")
    done = push(fn, VISUAL[:batch], x, y)
    assert done.selected == ["add"]
    assert_rows(done.result, fn(x, y), VISUAL[:batch])


def test_other_reader_keeps_the_value_in_full() -> None:
    (x,) = inputs(1, "BSW")

    def fn(x: Tensor) -> Tensor:
        y = torch.sin(x)
        return torch.cos(y) * y.amax(1, keepdim=True)

    done = push(fn, VISUAL[:1], x)
    assert sorted(done.selected) == ["sin"]
    assert_rows(done.result, fn(x), VISUAL[:1])


def test_two_readers_share_one_selection() -> None:
    (x,) = inputs(3, "BSW")
    done = push(lambda x: x.sin().cos() * x.sin().exp() + x, VISUAL, x)
    assert done.selected == ["input"]
    assert done.stops == []
