"""A copy of a model that drafts for it sees the picture, and guesses what the model says."""

from __future__ import annotations

import pytest

from benchmarks.speculative import accepted, answered, as_drafter, share
from tests.helpers.families import FAMILIES, ONE_IMAGE

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_a_copy_guesses_everything(family: str) -> None:
    model, inputs = FAMILIES[family].build(2), FAMILIES[family].inputs(ONE_IMAGE)
    plain, _ = answered(model, [inputs])
    answers, counts = answered(model, [inputs], assistant_model=as_drafter(model))
    assert answers == plain
    assert counts[0][1] > 0
    assert counts[0][0] == counts[0][1]


def test_what_counts_as_accepted() -> None:
    assert accepted((2, [7, 8, 9]), [0, 0, 7, 8, 5]) == 2
    assert accepted((2, [7, 8]), [0, 0, 7, 8, 5]) == 2
    assert accepted((2, [7]), [0, 0, 8]) == 0
    assert share([(1, 2), (1, 2)])["accepted"] == 0.5
    assert share([(0, 0)])["interval"] is None
