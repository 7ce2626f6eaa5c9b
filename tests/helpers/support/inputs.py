"""Columns "batches and padding" and "image layouts": what stands in a batch, and where the images stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opskip_compile.backend.reports import REPORTS
from tests.helpers.families import IMAGE, UNEVEN
from tests.helpers.shrink import VIDEO
from tests.helpers.support.basic import bare, logits_and_cache
from tests.helpers.support.forms import Check, Member, form
from tests.helpers.support.outcome import ABSENT, DENSE, SKIPS, SPEC, THROUGH, Install, Outcome, in_place, measure

Layout = Sequence[Sequence[int]]
FOUR: Layout = ((3, 5), (2, 4, 3), (9,), (1, 0, 2))
EIGHT: Layout = (*FOUR, (0, 5), (5, 0), (0, 0), (4, 1, 1, 2))
LAYOUTS: dict[str, Layout] = {
    "one image between texts": ((4, 6),),
    "two images next to each other": ((3, 0, 5),),
    "several images between texts": ((3, 2, 4, 5),),
    "image first": ((0, 5),),
    "image last": ((5, 0),),
    "image only": ((0, 0),),
}
NO_ROWS = "no visual rows in this graph"


def visual_rows(inputs: dict[str, Tensor]) -> Tensor:
    """Bool ``(batch, sequence)``: the rows of images and videos."""
    return (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)


def shown_rows(outputs: Any, shown: Tensor) -> list[Tensor]:
    """Logits, keys and values without the rows of the padding; a window's cache as it is."""
    found = []
    for tensor in logits_and_cache(outputs):
        by_row = tensor.transpose(1, 2) if tensor.dim() == 4 else tensor
        found.append(by_row[shown] if by_row.shape[:2] == shown.shape else tensor)
    return found


def check(family: Member, inputs: dict[str, Tensor], spec: str = SPEC, install: Install = in_place) -> Outcome:
    """Measure one forward, and compare the report's counts of rows with those of the prompt."""
    mask, shown, count = visual_rows(inputs), inputs["attention_mask"].bool(), REPORTS.count
    outcome = measure(family.build(), lambda model: shown_rows(model(**inputs), shown), mask, spec, install)
    through = mask.flip(1).cumsum(1).flip(1) > 0
    for report in REPORTS.since(count):
        if report.rewritten and report.prompt is not None:
            assert (report.prompt.batch, report.prompt.rows) == mask.shape
            assert report.prompt.visual == tuple(mask.sum(1).tolist())
            assert report.prompt.through_visual == tuple(through.sum(1).tolist())
    return outcome


def layout_check(layout: Layout, spec: str = SPEC, install: Install = in_place, padding: str = "left") -> Check:
    return lambda family: check(family, family.inputs(layout, padding=padding), spec, install)


def text_only(install: Install) -> Check:
    """Supported as intended: bitwise the dense result, and the report says that there are no visual rows."""

    def run(family: Member) -> Outcome:
        model, inputs, count = family.build(), family.inputs(((9,),)), REPORTS.count
        torch._dynamo.reset()
        try:
            want = logits_and_cache(model(**inputs))
        except TypeError as error:
            return Outcome(ABSENT, f"the dense model refuses it: {error}")
        got = logits_and_cache(install(model, SPEC)(**inputs))
        assert len(got) == len(want)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        reports = REPORTS.since(count)
        assert reports
        assert not any(report.rewritten for report in reports)
        other = [report.reason for report in reports if NO_ROWS not in report.reason]
        return Outcome(DENSE, other[-1]) if other else Outcome(SKIPS)

    return run


for words, batch in (("batch of 2", UNEVEN), ("batch of 4, one without an image", FOUR), ("batch of 8", EIGHT)):
    for side in ("left", "right"):
        form("batches and padding", f"{words}, padded on the {side}")(layout_check(batch, padding=side))
        form("batches and padding", f"{words}, padded on the {side}, rows through_visual")(
            layout_check(batch, THROUGH, padding=side)
        )
form("batches and padding", "batch of 4, torch.compile of the model")(layout_check(FOUR, install=bare))

for words, one in LAYOUTS.items():
    form("image layouts", words)(layout_check(one))
    form("image layouts", f"{words}, rows through_visual")(layout_check(one, THROUGH))
for words in ("several images between texts", "image only"):
    form("image layouts", f"{words}, torch.compile of the model")(layout_check(LAYOUTS[words], install=bare))
form("image layouts", "text only")(text_only(in_place))
form("image layouts", "text only, torch.compile of the model")(text_only(bare))
