"""flex_attention: kept queries under the mask that its blocks and its function stand for; else full and why."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

import opskip_compile as opskip
from opskip_compile import _compat
from opskip_compile.passes.flex import attend_by_flex
from tests.helpers.families import FAMILIES, UNEVEN, visual_mask
from tests.helpers.own_decoder import EAGER, visual

pytestmark = pytest.mark.usefixtures("fresh")
SPECS = ("silent:1 attend:0", "silent@through_visual:1 transform:0")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("layout", [((3, 5),), UNEVEN, ((2,), (4, 4, 4))], ids=["one", "uneven", "no-image"])
@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_transformers(name: str, layout: Any, spec: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.build(2), family.inputs(layout)
    model.set_attn_implementation({"text_config": "flex_attention"})
    rows = inputs["attention_mask"].bool()
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = model(**inputs).logits
    opskip.compile(model, spec, options=EAGER)
    got = model(**inputs).logits
    torch.testing.assert_close(got[rows], want[rows])
    report = opskip.last_report()
    assert len(report.skipped) == 3
    assert not report.stops
    assert report.flops_before is not None
    assert report.flops_before > 0


def test_lowered_by_inductor() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs(UNEVEN)
    model.set_attn_implementation({"text_config": "flex_attention"})
    rows = inputs["attention_mask"].bool()
    with opskip.oracle(model, opskip.Schedule.from_spec(SPECS[0]), visual_mask(inputs)):
        want = model(**inputs).logits
    opskip.compile(model, SPECS[0])
    torch.testing.assert_close(model(**inputs).logits[rows], want[rows])


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k <= q


def windowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & (k > q - 5)


def by_head_and_element(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & ((q + h) % (b + 2) != 0)


def nothing_for_some(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & (q > 8)


def of_own_blocks(block_mask: BlockMask) -> BlockMask:
    """With full blocks of which the function would leave keys out, and blocks that are not listed at all."""
    generator = torch.Generator().manual_seed(1)
    shape = block_mask.kv_indices.shape
    part, full = (torch.randint(0, 3, shape[:3], generator=generator, dtype=torch.int32) for _ in range(2))
    index = torch.rand(shape, generator=generator).argsort(-1).int()
    return BlockMask.from_kv_blocks(
        part, index, full, index.flip(-1), BLOCK_SIZE=block_mask.BLOCK_SIZE, mask_mod=block_mask.mask_mod
    )


def written_out(block_mask: BlockMask, batch: int, heads: int, length: int) -> Tensor:
    """Key by key: a listed block is read as its function says, a full one whole."""
    mask = torch.zeros(batch, heads, length, length, dtype=torch.bool)
    queries_of_block, keys_of_block = block_mask.BLOCK_SIZE
    lists = (
        (block_mask.kv_num_blocks, block_mask.kv_indices),
        (block_mask.full_kv_num_blocks, block_mask.full_kv_indices),
    )
    for b, h, q in itertools.product(range(batch), range(heads), range(length)):
        for is_full, (count, index) in enumerate(lists):
            assert count is not None
            assert index is not None
            block = (b, h, q // queries_of_block)
            for listed in index[block][: count[block]].tolist():
                for k in range(listed * keys_of_block, min(length, (listed + 1) * keys_of_block)):
                    read = block_mask.mask_mod(*map(torch.tensor, (b, h, q, k)))
                    mask[b, h, q, k] |= bool(is_full) | bool(read)
    return mask


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("own_blocks", [False, True])
@pytest.mark.parametrize("function", [causal, windowed, by_head_and_element, nothing_for_some])
def test_the_mask_of_some_rows(function: Callable[..., Tensor], own_blocks: bool, shared: bool) -> None:
    """Against flex_attention itself, for all rows; it goes by the function alone if it is not compiled, so that with
    blocks of one's own the mask is written out."""
    batch, heads, length = 2, 4, 50
    torch.manual_seed(0)
    query = torch.randn(batch, heads, length, 8)
    key, value = (torch.randn(batch, heads // 2 if shared else heads, length, 8) for _ in range(2))
    block_mask = create_block_mask(function, batch, heads, length, length, device="cpu", BLOCK_SIZE=(16, 8))
    block_mask = of_own_blocks(block_mask) if own_blocks else block_mask
    if own_blocks:
        mask = written_out(block_mask, batch, heads, length)
        each = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
        want = nn.functional.scaled_dot_product_attention(query, *each, mask, scale=0.4)
        want = want.masked_fill(~mask.any(-1, keepdim=True), 0)
    else:
        want = flex_attention(query, key, value, block_mask=block_mask, scale=0.4, enable_gqa=shared)
    rows = torch.stack([torch.randperm(length)[:20].sort().values for _ in range(batch)])
    kept = query.gather(2, rows[:, None, :, None].expand(-1, heads, -1, 8))
    given = (lambda score, *_: score, block_mask.as_tuple(), 0.4, {}, (), ())
    got = attend_by_flex(kept, key, value, *given, True, rows)
    torch.testing.assert_close(got, want.gather(2, rows[:, None, :, None].expand(-1, heads, -1, 8)))


class Flexible(nn.Module):
    """A decoder of one layer with flex_attention, whose attention updates text rows only if ``kept``."""

    def __init__(self, score: Callable[..., Tensor] | None, one_key_batch: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.ffn, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)
        self.score, self.one_key_batch = score, one_key_batch
        self.block_mask = create_block_mask(causal, 2, None, 12, 12, device="cpu", BLOCK_SIZE=8)

    def forward(self, hidden: Tensor, mask: Tensor, kept: bool = False) -> Tensor:
        hidden = opskip.mark_visual(hidden, mask)
        q, k, v = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in self.attention(self.norm(hidden)).chunk(3, -1))
        if self.one_key_batch:
            k, v = k[:1], v[:1]
        update = flex_attention(q, k, v, self.score, self.block_mask).transpose(1, 2).flatten(2)
        hidden = hidden + (update.masked_fill(mask[..., None], 0) if kept else update)
        return self.norm(hidden + nn.functional.silu(self.ffn(self.norm(hidden))))


def doubled(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return score * 2


@pytest.mark.parametrize(("score", "one_key_batch"), [(None, False), (doubled, False), (None, True)])
def test_what_stays_full(score: Callable[..., Tensor] | None, one_key_batch: bool) -> None:
    model, hidden, mask = Flexible(score, one_key_batch).eval(), torch.randn(2, 12, 16), visual(2, 12, 2, 8)
    want = model(hidden, mask, kept=True)
    model.compile(backend="opskip", options={"schedule": "transform:0", "lower": "eager"})
    torch.testing.assert_close(model(hidden, mask), want)
    report = opskip.last_report()
    assert len(report.skipped) == 1
    if score is None and not one_key_batch:
        assert not report.stops
    else:
        assert ["its scores are changed or read, or" in stop.reason for stop in report.stops] == [True]


def test_fields_of_a_block_mask() -> None:
    """`_compat` reads them by their places."""
    block_mask = create_block_mask(causal, 1, 1, 40, 40, device="cpu", BLOCK_SIZE=(16, 8))
    found = _compat.BlockMask.of(block_mask.as_tuple())
    assert found.part[0] is block_mask.kv_num_blocks
    assert found.part[1] is block_mask.kv_indices
    assert found.full[0] is block_mask.full_kv_num_blocks
    assert found.full[1] is block_mask.full_kv_indices
    assert (found.sizes, found.function) == ((16, 8), causal)
