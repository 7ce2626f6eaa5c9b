"""Marks: rows that one graph names and another one leaves out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.own_decoder import EAGER, Decoder, visual

pytestmark = pytest.mark.usefixtures("fresh")


class Merging(Decoder):
    """Merges images, then videos, then decodes; ``breaks`` says after which of the two merges the graph ends."""

    breaks: tuple[int, ...] = ()

    def forward(self, hidden: Tensor, visual: Tensor, skip: str = "") -> Tensor:
        """``visual``: bool ``(2, batch, sequence)``, the rows of images and those of videos."""
        hidden = hidden.masked_scatter(visual[0, ..., None].expand_as(hidden), torch.ones_like(hidden))
        if 0 in self.breaks:
            torch._dynamo.graph_break()
        hidden = hidden.masked_scatter(visual[1, ..., None].expand_as(hidden), 2 * torch.ones_like(hidden))
        if 1 in self.breaks:
            torch._dynamo.graph_break()
        return self.decode(hidden, visual.any(0), skip)


@pytest.mark.parametrize(
    ("breaks", "lower"),
    [
        *(pytest.param(breaks, "eager", id=f"{breaks}") for breaks in ((), (0,), (1,), (0, 1))),
        pytest.param((0, 1), "inductor", marks=pytest.mark.inductor),
    ],
)
def test_images_and_videos_merged_in_graphs_of_their_own(breaks: tuple[int, ...], lower: str) -> None:
    model = Merging()
    model.breaks = breaks
    fast = torch.compile(model, backend="opskip", options={"schedule": "silent:0-1", "lower": lower})
    for seed, (image, video) in enumerate([((2, 5), (6, 9)), ((0, 4), (8, 12)), ((2, 5), (0, 0)), ((0, 0), (6, 9))]):
        rows = torch.stack([visual(2, 12, *image), visual(2, 12, *video)])
        hidden = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(seed))
        want = model(hidden, rows, "0a0f1a1f")
        assert (fast(hidden, rows) - want).abs().max() <= 1e-5
    assert opskip.last_report().rewritten


@pytest.mark.parametrize("lower", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_rows_cross_a_graph_break(lower: str) -> None:
    model, options = Decoder(broken=True), {"schedule": "silent:0-1", "lower": lower}
    fast = torch.compile(model, backend="opskip", options=options)
    for seed, mask in enumerate((visual(2, 12, 2, 8), visual(2, 12, 0, 5), visual(2, 12, 0, 0))):
        hidden = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(seed)) * 2
        assert (fast(hidden, mask) - model(hidden, mask, "0a0f1a1f")).abs().max() <= 1e-5
    assert opskip.last_report().row_source == "marked_input"


def test_a_marked_prompt_does_not_use_what_was_compiled_for_an_unmarked_one() -> None:
    """The caller merges the image and marks the rows; sizes stay static."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    mask = visual_mask(inputs)
    embeddings = torch.randn(*mask.shape, 32)
    dense = model(inputs_embeds=embeddings).logits
    with opskip.oracle(model, opskip.Schedule.from_spec("silent:0-1"), mask):
        want = model(inputs_embeds=embeddings).logits
    fast = torch.compile(model, backend="opskip", options={"schedule": "silent:0-1", **EAGER})
    assert torch.allclose(fast(inputs_embeds=embeddings.clone()).logits, dense, atol=1e-5)
    marked = opskip.mark_visual(embeddings.clone(), mask)
    for _ in range(2):
        assert torch.allclose(fast(inputs_embeds=marked).logits, want, atol=1e-5)
        assert torch.allclose(fast(inputs_embeds=embeddings.clone()).logits, dense, atol=1e-5)
    assert [report.rewritten for report in opskip.reports()] == [False, True]
    assert opskip.last_report().prompt.rows == mask.shape[1]
