"""`compile` counts kept rows before a graph runs: no size depends on data, however much room there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.attachment.attachment import ATTRIBUTE, Attachment
from opskip_compile.backend.settings import PADDED, Settings
from opskip_compile.passes.row_counts import RowCounts
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.lowered import asks_for_data, lowered_graphs
from tests.helpers.own_decoder import EAGER

pytestmark = pytest.mark.usefixtures("fresh")
WHOLE, THROUGH, KEEP = "silent:1 attend:0", "silent@through_visual:1 transform:0", "silent@keep=0.3:1 attend@keep=0.5:0"
LAYOUTS = (((3, 5),), ((6, 8), (2, 9)), ((20, 1), (1, 3)))
NAMES = ("qwen3_vl", "llava")


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("schedule", [WHOLE, THROUGH, KEEP])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("regions", [True, False], ids=["regions", "layers"])
def test_no_size_depends_on_data(name: str, schedule: str, regions: bool, without_gradients: None) -> None:
    family = FAMILIES[name]
    model = opskip.compile(family.build(2), schedule, options={"regions": regions, "causal": False})
    with lowered_graphs() as graphs:
        model(**family.inputs(LAYOUTS[1]))
    assert opskip.last_report().skipped
    assert graphs
    assert not [node for gm in graphs for node in asks_for_data(gm)]


def test_a_graph_whose_caller_has_not_counted_asks(without_gradients: None) -> None:
    """The bare backend, and what says that the test above can fail."""
    family = FAMILIES["llava"]
    model = family.build(2)
    model.compile(backend="opskip", options={"schedule": KEEP, "causal": False})
    with lowered_graphs() as graphs:
        model(**family.inputs(LAYOUTS[1]))
    assert opskip.last_report().skipped
    assert any(asks_for_data(gm) for gm in graphs)


@pytest.mark.parametrize("pad_rows", [1, 3, 64])
@pytest.mark.parametrize("schedule", [WHOLE, THROUGH, KEEP])
@pytest.mark.parametrize("name", NAMES)
def test_right_with_any_room(name: str, schedule: str, pad_rows: int, without_gradients: None) -> None:
    family = FAMILIES[name]
    model = family.build(2)
    for seed, layout in enumerate(LAYOUTS):
        inputs = family.inputs(layout, seed)
        with opskip.oracle(model, opskip.Schedule.from_spec(schedule), visual_mask(inputs)):
            want = model(**inputs).logits
        opskip.compile(model, schedule, options={**EAGER, "pad_rows": pad_rows})
        got = model(**inputs).logits
        rows = inputs["attention_mask"].bool()
        torch.testing.assert_close(got[rows], want[rows])
        assert opskip.last_report().skipped
        opskip.remove(model)


@pytest.mark.parametrize("name", NAMES)
def test_one_compile_for_prompts_that_keep_other_numbers(name: str, without_gradients: None) -> None:
    family = FAMILIES[name]
    model = opskip.compile(family.build(2), KEEP, options=EAGER, dynamic=True)
    for seed, layout in enumerate((((3, 5),), ((6, 8),), ((2, 2, 9),), ((20, 1),), ((5, 5, 5, 5),))):
        model(**family.inputs(layout, seed))
    assert sum(bool(report.operators) for report in opskip.reports()) == 1


@pytest.mark.parametrize("way", ["regional", "modes", "copied"])
def test_other_ways_are_given_the_same_room(way: str, without_gradients: None) -> None:
    import copy

    from torch.utils.flop_counter import FlopCounterMode

    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs(LAYOUTS[1])
    with opskip.oracle(model, opskip.Schedule.from_spec(WHOLE), visual_mask(inputs)):
        want = model(**inputs).logits
    opskip.compile(model, WHOLE, regional=way == "regional", options={**EAGER, "causal": False, "pad_rows": 4})
    model = copy.deepcopy(model) if way == "copied" else model
    with FlopCounterMode(display=False) if way == "modes" else torch.no_grad():
        got = model(**inputs).logits
    rows = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[rows], want[rows])
    prompt = opskip.last_report().prompt
    assert prompt is not None
    assert prompt.rooms["visual"] % 4 == 0 or prompt.rooms["visual"] == prompt.rows


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("uncounted", [False, True])
def test_a_decoder_that_is_called_in_another_way(
    regional: bool, uncounted: bool, monkeypatch: pytest.MonkeyPatch, without_gradients: None
) -> None:
    """Rows that were not counted before the decoder are counted in it, or found by the graph."""
    monkeypatch.setattr(Attachment, "_leave_out_plain_tokens", lambda *_: None)
    if uncounted:
        monkeypatch.setattr(RowCounts, "count", lambda *_: ())
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs(LAYOUTS[1])
    with opskip.oracle(model, opskip.Schedule.from_spec(WHOLE), visual_mask(inputs)):
        want = model(**inputs).logits
    opskip.compile(model, WHOLE, regional=regional, options=EAGER)
    got = model(**inputs).logits
    rows = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[rows], want[rows])
    report = opskip.last_report()
    assert report.skipped
    assert report.prompt is not None
    assert bool(report.prompt.rooms) is not uncounted


def test_a_report_counts_the_rows_that_are_computed(without_gradients: None) -> None:
    family = FAMILIES["llava"]
    flops: dict[int, Any] = {}
    for pad_rows in (1, 7):
        model = opskip.compile(family.build(2), WHOLE, options={**EAGER, "pad_rows": pad_rows})
        model(**family.inputs(LAYOUTS[0]))
        flops[pad_rows] = opskip.last_report().flops_after
    assert flops[1] < flops[7]


def test_padding_without_effect_is_told(caplog: pytest.LogCaptureFixture, without_gradients: None) -> None:
    """A graph break in front of the layers: flex_attention's on a CPU."""
    family = FAMILIES["llava"]
    for pad_rows in (None, 8):
        model = family.build(2)
        model.set_attn_implementation({"text_config": "flex_attention"})
        options = EAGER if pad_rows is None else {**EAGER, "pad_rows": pad_rows}
        opskip.compile(model, WHOLE, options=options)
        model(**family.inputs(LAYOUTS[0]))
        assert opskip.last_report().skipped
        assert ("pad_rows has no effect on this graph" in caplog.text) is (pad_rows is not None)


def test_options() -> None:
    family = FAMILIES["llava"]
    for wrong in (0, 1.5, True, "8"):
        with pytest.raises(opskip.OptionError, match=r"options\.pad_rows: must be"):
            opskip.compile(family.build(2), WHOLE, options={"pad_rows": wrong})
    with pytest.raises(opskip.OptionError, match=r"options\.pad_rows.*opskip_compile\.compile"):
        Settings.parse({"pad_rows": 8})
    recorded = opskip.compile(family.build(2), WHOLE, mode="reduce-overhead")
    assert getattr(recorded, ATTRIBUTE).row_counts.multiple == PADDED
