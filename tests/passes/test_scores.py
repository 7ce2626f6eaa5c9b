"""Which rows a keep share keeps: by hand, on layouts, with padding and caches, and what the operators promise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from opskip_compile.passes.levels import kept_by_level
from opskip_compile.passes.runtime import Given, Prompts, kept_rows
from opskip_compile.passes.scores import (
    CRITICAL_ROWS,
    KEPT_COUNT,
    PROBE_ROWS,
    ROW_SCORES,
    SPREAD_SCORES,
    critical_rows,
    kept_count,
    probe_rows,
    row_scores,
    spread_scores,
)
from opskip_compile.schedule.left_out import PROBES, LeftOut
from tests.passes.test_runtime import EVERY, LAYOUTS, mask


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.29, 0.5, 0.7, 0.999999, 1.0])
@pytest.mark.parametrize("through", [False, True], ids=["visual", "through_visual"])
@EVERY
def test_as_many_rows_as_the_share_says(visual: Tensor, through: bool, keep: float) -> None:
    left_out = visual.flip(1).cumsum(1).flip(1) > 0 if through else visual
    rows, live = critical_rows(visual, through, torch.rand(visual.shape), *kept_count(visual, through, keep))
    for element, out in enumerate(left_out.tolist()):
        kept = rows[element][live[element]].tolist()
        assert len(kept) == out.count(False) + math.ceil(Fraction(repr(keep)) * sum(out))
        assert kept == sorted(kept)
        assert {row for row, is_out in enumerate(out) if not is_out} <= {*kept}
        assert len({*rows[element].tolist()}) == rows.shape[1], "no row stands twice"


def test_the_count_is_exact_for_every_share_of_two_decimals() -> None:
    for percent in range(101):
        keep = percent / 100
        for count in (1, 7, 25, 64, 100, 576):
            kept, most = kept_count(torch.ones(1, count, dtype=torch.bool), False, keep)
            assert most.tolist() == [kept[0, 0].item()] * 2
            assert {*kept.tolist()[0]} == {most[0].item()}
            assert most[0].item() == LeftOut(keep=keep).critical(count) == -(-percent * count // 100)


def test_the_highest_scores_are_kept_and_the_first_of_equals() -> None:
    visual = mask(".vvvv.", "vvvv..")
    scores = torch.tensor([[9.0, 1, 3, 2, 3, 9], [5, 5, 5, 6, 0, 0]])
    rows, _ = critical_rows(visual, False, scores, *kept_count(visual, False, 0.5))
    assert rows.tolist() == [[0, 2, 4, 5], [0, 3, 4, 5]]


def test_elements_keep_shares_of_their_own_rows() -> None:
    visual = mask("vvvv....", "v.......", "........")
    rows, live = critical_rows(visual, False, torch.zeros(visual.shape), *kept_count(visual, False, 0.5))
    assert [rows[i][live[i]].tolist() for i in range(3)] == [[0, 1, 4, 5, 6, 7], [*range(8)], [*range(8)]]


def test_before_the_first_attention_rows_are_spread_over_the_image() -> None:
    """Of 64 rows in a line, no gap between those that are kept is much wider than with even steps."""
    visual = torch.zeros(1, 70, dtype=torch.bool)
    visual[:, 3:67] = True
    scores = spread_scores(visual)
    assert scores.max() < 1e-5
    kept: set[int] = set()
    for count, widest in ((8, 16), (16, 8), (32, 4)):
        of_all, _ = critical_rows(visual, False, scores, *kept_count(visual, False, count / 64))
        rows = [row for row in of_all[0].tolist() if visual[0, row]]
        gaps = [b - a for a, b in zip([2, *rows], [*rows, 67], strict=True)]
        assert len(rows) == count
        assert max(gaps) <= widest
        assert kept <= {*rows}, "what a small share keeps a large one keeps too"
        kept = {*rows}


def test_the_last_text_rows_are_asked_and_no_padding() -> None:
    n = PROBES + 8
    visual = torch.zeros(3, n, dtype=torch.bool)
    visual[:, 2:5] = True
    shown = torch.ones(3, n, dtype=torch.bool)
    shown[1, n - 3 :] = False
    shown[2, :4] = False
    allowed = torch.ones(n, n, dtype=torch.bool).tril() & shown[:, None, None]
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    for given in (allowed, added):
        asked = ~probe_rows(visual, given, None)
        assert asked[0].nonzero().flatten().tolist() == [*range(8, n)]
        assert asked[1].nonzero().flatten().tolist() == [*range(5, n - 3)]
        assert asked[2].nonzero().flatten().tolist() == [*range(8, n)]
    assert torch.equal(~probe_rows(visual, None, None), ~probe_rows(visual[:1], None, None).expand(3, n))


@pytest.mark.parametrize("form", ["none", "bool", "added", "causal"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_scores_are_the_weights_of_attention(form: str, heads: int) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, heads, 10, 8)
    rows = torch.tensor([[4, 8, 9], [9, 7, 1]])
    live = torch.tensor([[True, True, True], [True, True, False]])[..., None]
    before = torch.rand(2, 10)
    reads = torch.arange(10) <= rows[:, None, :, None] if form != "none" else torch.ones(2, 1, 3, 10, dtype=torch.bool)
    given = {"bool": reads, "added": torch.zeros(reads.shape).masked_fill(~reads, -1e9)}.get(form)
    got = row_scores(query, key, given, rows, live, before, None, None, form == "causal")
    # The weights, through PyTorch's own attention: with the identity for values its result is the weights.
    identity = torch.eye(10).expand(2, 4, 10, 10)
    keys = key.repeat_interleave(4 // heads, 1)
    weights = torch.nn.functional.scaled_dot_product_attention(query, keys, identity, reads)
    torch.testing.assert_close(got, before + (weights.mean(1) * live).sum(1))


def test_scores_are_float32_under_autocast_and_counted_by_pytorch() -> None:
    torch.manual_seed(0)
    query, key, before = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 10, 8), torch.zeros(2, 10)
    rows, live = torch.tensor([[7, 8, 9]] * 2), torch.ones(2, 3, 1, dtype=torch.bool)
    want = row_scores(query, key, None, rows, live, before, None, None, True)
    with torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
        got = row_scores(query, key, None, rows, live, before, None, None, True)
    assert torch.equal(got, want)
    assert counter.get_total_flops() == 2 * (2 * 4 * 3 * 8) * 10


def test_keys_of_a_cache_take_their_part_and_have_no_score() -> None:
    torch.manual_seed(0)
    query, key, before = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 12, 8), torch.zeros(1, 5)
    rows, live = torch.tensor([[2, 3, 4]]), torch.ones(1, 3, 1, dtype=torch.bool)
    every = row_scores(query, key, None, rows, live, torch.zeros(1, 12), None, 1.0, False)
    last = row_scores(query, key, None, rows, live, before, None, 1.0, False)
    torch.testing.assert_close(last, every[:, -5:])
    written = row_scores(query, key, None, rows, live, before, torch.arange(4, 9), 1.0, False)
    torch.testing.assert_close(written, every[:, 4:9])
    assert every.sum().item() == pytest.approx(3)


@pytest.mark.parametrize("name", ["one-image", "batch", "all-visual"])
def test_operators_are_registered_properly(name: str) -> None:
    visual = LAYOUTS[name]
    batch, length = visual.shape
    scores = torch.rand(visual.shape)
    count, most = kept_count(visual, True, 0.5)
    query = torch.randn(batch, 4, 3, 8, requires_grad=True)
    rows = torch.zeros(batch, 3, dtype=torch.int64)
    alive = torch.ones(batch, 3, 1, dtype=torch.bool)
    allowed = torch.ones(batch, 1, length, length, dtype=torch.bool)
    torch.library.opcheck(PROBE_ROWS, (visual, allowed, None))
    torch.library.opcheck(SPREAD_SCORES, (visual,))
    torch.library.opcheck(KEPT_COUNT, (visual, False, 0.5))
    torch.library.opcheck(CRITICAL_ROWS, (visual, True, scores, count, most))
    torch.library.opcheck(
        ROW_SCORES,
        (query, torch.randn(batch, 2, length, 8), None, rows, alive, scores, None, None, True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


STEP = mask(".vvvv..vvv.v.vv.vv.....")


@pytest.fixture
def step() -> Iterator[Prompts]:
    """A step of a server in one element: a whole prompt, part of one, a whole one and a row of its answer, filling."""
    Given.prompts = Prompts.of([7, 5, 8], [7, 0, 7], STEP[0])
    yield Given.prompts
    Given.prompts = None


def test_prompts_in_one_element_choose_each_for_itself(step: Prompts) -> None:
    visual = STEP
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(23, heads, 8, generator=generator) for heads in (4, 2))
    spans = [(0, 7), (12, 19)]

    def chosen(part: slice, causal: bool) -> tuple[Tensor, Tensor]:
        own = visual[:, part]
        asked, live = kept_rows(probe_rows(own, None, None), False)
        scores = spread_scores(own)
        few = query[part][asked[0]] if causal else query[part][asked[0]].transpose(0, 1)[None]
        keys = key[part] if causal else key[part].transpose(0, 1)[None]
        scores = row_scores(few, keys, None, asked, live[..., None], scores, None, None, True)
        rows, alive = critical_rows(own, False, scores, *kept_count(own, False, 0.3))
        return rows[alive], scores

    rows, scores = chosen(slice(0, 23), True)
    assert {7, 8, 9, 10, 11, 19, 20, 21, 22} <= {*rows.tolist()}, "parts of prompts, answers and filling are kept"
    Given.prompts = None
    for start, end in spans:
        alone, own = chosen(slice(start, end), False)
        torch.testing.assert_close(scores[:, start:end], own)
        assert [row - start for row in rows.tolist() if start <= row < end] == alone.tolist()
        assert len(alone) < end - start


def test_prompts_in_one_element_take_each_a_level(step: Prompts) -> None:
    shares, level = [1.0, 0.0], torch.zeros(1, 23, dtype=torch.int64)
    level[:, 12:19] = 1
    count, most = kept_by_level(STEP, False, shares, level)
    assert [count[0, row].item() for row in (0, 12)] == [7, 3]
    assert most.tolist() == [23 - 4] * 2
