"""The operators of levels: the choice as plain code makes it, and as many rows as the level's share says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opskip_compile.models.critical import level_of
from opskip_compile.passes.levels import CHOOSE_LEVEL, KEPT_BY_LEVEL, choose_level, features, kept_by_level, taken
from opskip_compile.passes.scores import kept_count
from opskip_compile.schedule.chooser import Chooser
from tests.helpers.leveled import leveled
from tests.passes.test_runtime import EVERY, mask

CHOOSER = leveled("none", "silent:3", "silent:2-3", "silent:1-3").chooser


def arguments(chooser: Chooser, digest: str) -> tuple[list[float], list[float], list[float], float, str]:
    weights = [w for row in chooser.weights for w in row]
    return weights, list(chooser.bias), list(chooser.gains), chooser.threshold, digest


@pytest.mark.parametrize("width", [3, 64, 150])
@pytest.mark.parametrize("form", ["bool", "float", "none", "static"])
def test_levels_are_those_of_plain_code(width: int, form: str) -> None:
    """For each element alone, with padding in front that is not counted as text, also in a cache of fixed size."""
    assert CHOOSER is not None
    visual = mask(".vvv..", "..vv..", "......", "vvvvvv")
    padding = mask("v.....", "......", "vv....", "......")
    hidden = torch.randn(4, 6, width, generator=torch.Generator().manual_seed(width))
    text = ~visual if form == "none" else ~visual & ~padding
    readable = (~padding)[:, None, None, :] & torch.ones(6, 6, dtype=torch.bool).tril()
    columns = None
    if form == "static":
        readable = torch.cat([torch.zeros(4, 1, 6, 2, dtype=torch.bool), readable], 3)
        columns = torch.arange(2, 8)
    given = None if form == "none" else torch.where(readable, 0.0, -torch.inf) if form == "float" else readable
    got = choose_level(hidden, visual, given, columns, *arguments(CHOOSER, f"{form} {width}"))
    rows = zip(hidden, visual.tolist(), text.tolist(), strict=True)
    want = [level_of(CHOOSER, *element) for element in rows]
    assert got.tolist() == [[level] * visual.shape[1] for level in want]
    assert taken(f"{form} {width}") == tuple(want)
    assert taken("never ran") == ()
    assert len(set(want)) > 1
    known = features(hidden, visual, text)
    assert not known[3, :64].any() or form == "none"  # no text
    assert not known[2, 64:].any()  # no visual row


def test_padding_may_hold_anything() -> None:
    visual, padding = mask("..vv"), mask("v...")
    hidden = torch.randn(1, 4, 8)
    known = features(hidden, visual, ~visual & ~padding)
    hidden[0, 0] = torch.inf
    assert torch.equal(features(hidden, visual, ~visual & ~padding), known)


@pytest.mark.parametrize("through", [False, True], ids=["visual", "through_visual"])
@EVERY
def test_as_many_rows_as_the_share_of_the_level_says(visual: Tensor, through: bool) -> None:
    shares = [1.0, 0.5, 0.29, 0.0]
    level = torch.arange(len(visual)) % 4
    count, most = kept_by_level(visual, through, shares, level[:, None].expand(visual.shape))
    alone = [kept_count(visual[i : i + 1], through, shares[at])[1][0].item() for i, at in enumerate(level.tolist())]
    assert count.tolist() == [[kept] * visual.shape[1] for kept in alone]
    assert most.tolist() == [max(alone), sum(alone)]
    for at, share in enumerate(shares):
        same, _ = kept_by_level(visual, through, shares, torch.full(visual.shape, at))
        assert torch.equal(same, kept_count(visual, through, share)[0])


def test_what_the_operators_promise() -> None:
    assert CHOOSER is not None
    visual = mask(".vvv..", "..vv..")
    torch.library.opcheck(KEPT_BY_LEVEL, (visual, False, [1.0, 0.5], torch.tensor([[0] * 6, [1] * 6])))
    hidden = torch.randn(2, 6, 8, requires_grad=True)
    torch.library.opcheck(CHOOSE_LEVEL, (hidden, visual, None, None, *arguments(CHOOSER, "check")))
