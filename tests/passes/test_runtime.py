"""What a rewritten graph calls when it runs: the row index, selection and scatter, and the marks."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from opskip_compile.passes.marks import MARKS
from opskip_compile.passes.runtime import (
    KEPT_ROWS,
    PACKED_ROWS,
    causal_mask,
    kept_rows,
    mark_visual,
    packed_rows,
    scatter_packed,
    scatter_rows,
    select_packed,
    select_rows,
)
from tests.helpers.graphs import kept_of


def mask(*elements: str) -> Tensor:
    """One text for each element, ``v`` where a row is visual."""
    return torch.tensor([[letter == "v" for letter in element] for element in elements])


LAYOUTS = {
    "one-image": mask("..vvv."),
    "two-images": mask(".vv.vv..v"),
    "no-visual-rows": mask("....."),
    "all-visual": mask("vvvv"),
    "ends-visual": mask("..vv"),
    "starts-visual": mask("vv.."),
    "one-row": mask("v"),
    "batch": mask("..vv..v", "vvvvvv.", "......."),
    "batch-without-kept": mask("vvvvv", "v.vvv"),
    "batch-all-visual": mask("vvv", "vvv"),
}
EVERY = pytest.mark.parametrize("visual", LAYOUTS.values(), ids=LAYOUTS.keys())


@EVERY
@pytest.mark.parametrize("through", [False, True], ids=["visual", "through_visual"])
def test_kept_rows(visual: Tensor, through: bool) -> None:
    rows, live = kept_rows(visual, through)
    expected = kept_of(visual, through)
    n = max(min(2, visual.shape[1]), *(len(kept) for kept in expected))
    assert rows.shape == live.shape == (len(visual), n)
    assert (rows.dtype, live.dtype) == (torch.int64, torch.bool)
    for mine, alive, kept in zip(rows.tolist(), live.tolist(), expected, strict=True):
        assert mine[: len(kept)] == kept.tolist()
        assert alive == [True] * len(kept) + [False] * (n - len(kept))
        assert len(set(mine)) == n
        assert set(mine) <= set(range(visual.shape[1]))


@pytest.mark.parametrize(
    ("text", "through", "rows", "live"),
    [
        ([".vv.v."], False, [[0, 3, 5]], [[1, 1, 1]]),
        ([".vv.v."], True, [[5, 0]], [[1, 0]]),
        (["vv"], True, [[0, 1]], [[0, 0]]),
        (["v"], False, [[0]], [[0]]),
        (["..v", "vv."], False, [[0, 1], [2, 0]], [[1, 1], [1, 0]]),
        (["..v", "vv."], True, [[0, 1], [2, 0]], [[0, 0], [1, 0]]),
    ],
)
def test_kept_rows_by_hand(text: list[str], through: bool, rows: list[list[int]], live: list[list[int]]) -> None:
    got = kept_rows(mask(*text), through)
    assert got[0].tolist() == rows
    assert got[1].tolist() == [[bool(x) for x in element] for element in live]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EVERY
def test_scatter_undoes_select(visual: Tensor, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(*visual.shape, 4).to(dtype)
    rows, live = kept_rows(visual, False)
    taken = select_rows(x, rows, 1)
    assert taken.shape == (len(visual), rows.shape[1], 4)
    assert torch.equal(scatter_rows(x, rows, taken), x)
    assert torch.equal(select_rows(scatter_rows(x, rows, taken + 1), rows, 1), taken + 1)
    written = scatter_rows(x, rows, torch.where(live.unsqueeze(-1), taken * 2, taken))
    assert torch.equal(written, torch.where(visual.unsqueeze(-1), x, x * 2))
    assert written.dtype == dtype


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("front", [1, 3])
def test_select_in_any_dimension(dim: int, front: int) -> None:
    visual = LAYOUTS["batch"]
    shape = [front, 2, 2, 2]
    shape[dim] = visual.shape[1]
    x = torch.randn(shape)
    rows, _ = kept_rows(visual, False)
    expected = torch.stack([x[b % front].index_select(dim - 1, rows[b]) for b in range(3)])
    assert torch.equal(select_rows(x, rows, dim), expected)


@pytest.mark.parametrize("name", ["one-image", "two-images", "batch", "batch-without-kept"])
def test_gradients(name: str) -> None:
    visual = LAYOUTS[name]
    torch.manual_seed(0)
    x = torch.randn(*visual.shape, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    rows, live = kept_rows(visual, False)
    taken = select_rows(x, rows, 1)
    out = scatter_rows(x, rows, torch.where(live.unsqueeze(-1), taken + torch.tanh(taken @ w), taken))
    oracle = x.clone()
    oracle[~visual] = x[~visual] + torch.tanh(x[~visual] @ w)
    torch.testing.assert_close(out, oracle)
    probe = torch.randn_like(out)
    mine = torch.autograd.grad((out * probe).sum(), (x, w))
    torch.testing.assert_close(mine, torch.autograd.grad((oracle * probe).sum(), (x, w)))


def test_causal_mask_has_the_rows_of_is_causal() -> None:
    rows, _ = kept_rows(LAYOUTS["batch"], False)
    key = torch.randn(3, 2, 7, 4)
    full = torch.ones(7, 7, dtype=torch.bool).tril()
    assert torch.equal(causal_mask(rows, key), torch.stack([full[r] for r in rows])[:, None])


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("name", ["one-image", "batch", "all-visual"])
def test_operator_is_registered_properly(name: str, through: bool) -> None:
    torch.library.opcheck(KEPT_ROWS, (LAYOUTS[name], through))


@pytest.mark.parametrize(
    ("hidden", "visual", "message"),
    [
        ((1, 4, 8), torch.zeros(1, 4, dtype=torch.int64), "visual_mask must be bool, not torch.int64"),
        ((1, 4, 8), torch.zeros(1, 5, dtype=torch.bool), r"not \(1, 4, 8\) and \(1, 5\)"),
        ((1, 4, 8), torch.zeros(4, dtype=torch.bool), r"not \(1, 4, 8\) and \(4,\)"),
        ((4, 8), torch.zeros(4, 8, dtype=torch.bool), r"hidden_states must be \(batch, sequence, width\)"),
    ],
)
def test_mark_visual_refuses(hidden: tuple[int, ...], visual: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mark_visual(torch.zeros(hidden), visual)


def test_mark_visual_gives_back_its_input() -> None:
    x, visual = torch.randn(1, 4, 8), mask(".vv.")
    assert mark_visual(x, visual) is x
    mark = MARKS.get(x)
    assert mark is not None
    assert torch.equal(mark.mask, visual)
    assert not mark.used


def test_mark_dies_with_its_tensor() -> None:
    gc.collect()  # what another test left in a cycle
    before = len(MARKS._marks)
    x = mark_visual(torch.randn(1, 4, 8), mask(".vv."))
    assert len(MARKS._marks) == before + 1
    del x
    gc.collect()
    assert len(MARKS._marks) == before


def test_mark_belongs_to_one_tensor_of_one_shape() -> None:
    x = mark_visual(torch.randn(1, 4, 8), mask(".vv."))
    assert MARKS.get(x.clone()) is None
    assert MARKS.get(x[:]) is None
    assert MARKS.get("text") is None
    x.resize_(1, 3, 8)
    assert MARKS.get(x) is None


@EVERY
@pytest.mark.parametrize("through", [False, True], ids=["visual", "through_visual"])
def test_packed_rows(visual: Tensor, through: bool) -> None:
    """The kept rows of all elements, one after the other, filled up to two with rows that are left out."""
    rows, live = kept_rows(visual, through)
    expected = [(i, row) for i, kept in enumerate(kept_of(visual, through)) for row in kept]
    most = torch.stack([live.sum(1).max(), live.sum()])
    places, flags = packed_rows(rows, live, most)
    found = list(map(tuple, places.T.tolist()))
    m = max(min(2, live.numel()), len(expected))
    assert flags.tolist() == [[i < len(expected) for i in range(m)]]
    assert found[: len(expected)] == expected
    assert len({*found}) == len(found) == m
    torch.library.opcheck(PACKED_ROWS, (rows, live, most))
    x = torch.arange(visual.numel() * 3.0).view(*visual.shape, 3)
    taken = select_packed(x, places, 1)
    assert taken.shape == (1, m, 3)
    assert torch.equal(taken[0], torch.stack([x[place] for place in found]))
    assert torch.equal(select_packed(x.transpose(1, 2), places, 2), taken.transpose(1, 2))
    assert torch.equal(select_packed(x[:1], places, 1)[0], torch.stack([x[0, row] for _, row in found]))
    assert torch.equal(scatter_packed(x, places, taken), x)
    changed = scatter_packed(x, places, taken + 1)
    assert int((changed != x).any(-1).sum()) == m
    assert torch.equal(select_packed(changed, places, 1), taken + 1)
