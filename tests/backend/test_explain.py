"""`explain`: the report of a dry run, with nothing run, lowered or left behind."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.backend.reports import REPORTS
from tests.helpers.families import FAMILIES, UNEVEN
from tests.helpers.own_decoder import Decoder, visual

pytestmark = pytest.mark.usefixtures("fresh")
EAGER = {"lower": "eager"}
SPEC = "silent:2 transform:0 attend:1"
ran: list[int] = []


@torch.library.custom_op("opskip_tests::ran", mutates_args=())
def note_run(x: Tensor) -> Tensor:
    ran.append(1)
    return x.clone()


@note_run.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Noted(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return note_run(self.norm(x))


def comparable(report: opskip.Report) -> dict[str, object]:
    return {name: value for name, value in report.to_dict().items() if name != "timing"}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_says_what_the_compile_says(family: str) -> None:
    model, inputs = FAMILIES[family].build(3), FAMILIES[family].inputs()
    explained = opskip.explain(model, inputs, SPEC)
    opskip.compile(model, SPEC, options=EAGER)
    model(**inputs)
    report = opskip.last_report()
    assert comparable(explained) == comparable(report)
    assert explained.diff().to_dict() == report.diff().to_dict()
    assert len(explained.skipped) == 4
    rows, kept = explained.prompt.rows, explained.prompt.rows - 16
    for op in explained.operators:
        assert (op.rows_before, op.rows_after) == (rows, kept if op.skipped else rows)
        assert op.entry_source.partition(":")[0].startswith(("modeling_", "capture.py")) or op.layer == 0
        assert op.exit_source.startswith("modeling_")
        assert (op.flops_after < op.flops_before) is op.skipped


def test_rows_of_every_element_are_known() -> None:
    report = opskip.explain(
        FAMILIES["qwen3_vl"].build(2), FAMILIES["qwen3_vl"].inputs(UNEVEN), "silent@through_visual:1"
    )
    length = report.prompt.rows
    assert report.prompt.batch == 2
    assert report.prompt.visual == (16, 32)
    # Padding stands on the left; through_visual takes all rows up to the end of the last image.
    assert report.prompt.through_visual == (length - 1 - 5, length - 1 - 3)
    assert {op.rows_after for op in report.operators if op.skipped} == {6}


def test_the_decoder_does_not_run_and_the_model_is_left_alone() -> None:
    model, arguments = Decoder(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    model.last = Noted(model.norm)
    ran.clear()
    report = opskip.explain(model, arguments, "silent:0-1")
    assert report.skipped == ("0.attention", "0.ffn", "1.attention", "1.ffn")
    assert not ran
    assert model._compiled_call_impl is None
    assert "_opskip_compiled" not in vars(model)
    dense = model(*arguments)
    assert ran
    model.last = model.norm
    assert torch.equal(dense, model(*arguments))


@pytest.mark.parametrize("how", ["opskip.compile", "model.compile", "own forward"])
def test_a_compiled_model_stays_compiled(how: str) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    decoder = model.get_decoder()
    if how == "own forward":
        dense = decoder.forward
        calls: list[int] = []
        decoder.forward = lambda *a, **k: calls.append(1) or dense(*a, **k)
        own = decoder.forward
    elif how == "opskip.compile":
        opskip.compile(model, "silent:1", options=EAGER)
    else:
        model.compile(backend="opskip", options={"schedule": "silent:1", **EAGER})
    before = model(**inputs).logits
    call, forward = model._compiled_call_impl, vars(decoder).get("forward")
    assert len(opskip.explain(model, inputs, "silent:0-1").skipped) == 4
    assert model._compiled_call_impl is call
    assert vars(decoder).get("forward") == forward
    assert torch.equal(model(**inputs).logits, before)
    if how == "own forward":
        assert forward is own
        opskip.remove(opskip.compile(model, "silent:1", options=EAGER))
        assert decoder.forward is own
    elif how == "opskip.compile":
        assert vars(opskip.remove(model).get_decoder()).get("forward") is None


def test_more_schedules_than_dynamos_limit() -> None:
    model, arguments = Decoder(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    specs = ["silent:0", "silent:1", "attend:0", "attend:1", "transform:0", "transform:1", "attend:0-1", "silent:0-1"]
    specs += ["transform:0-1", "transform:1 attend:0", "transform:0 attend:1"]
    assert [opskip.explain(model, arguments, spec).schedule for spec in specs] == specs
    assert opskip.explain(model, arguments, "none").reason == "the schedule skips nothing here"


@pytest.mark.parametrize("broken", [False, True])
def test_nothing_captured_before_is_taken_for_it(broken: bool) -> None:
    """Same shapes, other rows: Dynamo would answer from its cache."""
    model, hidden = Decoder(broken=broken), torch.randn(1, 12, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Guards may run slower on Python 3.13.0")  # torch's own, of that one
        reports = [opskip.explain(model, (hidden, visual(1, 12, 2, stop)), "silent:1") for stop in (8, 5, 8)]
        gc.collect()
    assert [report.prompt.visual for report in reports] == [(6,), (3,), (6,)]
    assert reports[0].flops_after == reports[2].flops_after < reports[1].flops_after
    assert reports[0].row_source == ("marked_input" if broken else "mark_visual")


@pytest.mark.parametrize("form", ["mapping", "sequence", "keyword"])
def test_inputs_in_every_form(form: str) -> None:
    hidden, mask = torch.randn(1, 12, 16), visual(1, 12, 2, 8)
    inputs = {"mapping": {"hidden": hidden, "visual": mask}, "sequence": [hidden, mask]}
    if form in inputs:
        assert opskip.explain(Decoder(), inputs[form], "silent:1").num_layers == 2
        return

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Decoder()

        def forward(self, hidden: Tensor) -> Tensor:
            return self.inner(hidden, mask)

    assert opskip.explain(One(), hidden, "silent:1").num_layers == 2


def test_text_only_says_why() -> None:
    model = FAMILIES["internvl"].build(2)
    report = opskip.explain(model, FAMILIES["internvl"].inputs(((9,),)), "silent:0-1")
    assert "no visual rows" in report.reason
    assert report.diff().changes == ()
    assert "nothing was rewritten: no visual rows" in str(report.diff())


def test_nothing_to_capture_is_an_error() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(opskip.OpSkipError, match="explain: no graph of Silent was captured"):
        opskip.explain(Silent(), torch.ones(2))


class Broken(Decoder):
    def forward(self, hidden: Tensor, visual: Tensor, skip: str = "") -> Tensor:
        hidden = opskip.mark_visual(hidden, visual)
        q, k, v, _ = self.attention[0](self.norm(hidden)).chunk(4, dim=-1)
        hidden = hidden * 0.5 + nn.functional.scaled_dot_product_attention(q, k, v)
        return self.norm(hidden + self.ffn[0](self.norm(hidden)))


@pytest.mark.parametrize(
    ("options", "schedule", "error", "message"),
    [
        ({}, "silent:5", opskip.ScheduleError, "layer 5 is not in a model of 1 layers"),
        ({}, "silent:x", opskip.ScheduleError, "silent:x"),
        ({"strict": True}, "silent:0", opskip.RewriteError, "0.attention stays full"),
        ({"dumb": "x"}, "silent:0", opskip.OptionError, "nearest known one is 'dump'"),
    ],
)
def test_errors_are_ours_and_leave_nothing(
    options: dict[str, object], schedule: str, error: type[Exception], message: str
) -> None:
    model, arguments = Broken(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    with pytest.raises(error, match=message):
        opskip.explain(model, arguments, schedule, options=options)
    assert model._compiled_call_impl is None
    assert vars(model).get("_opskip_compiled") is None


def test_an_error_of_the_model_is_handed_on() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("the model's own")

    with pytest.raises(KeyError, match="the model's own"):
        opskip.explain(Failing(), torch.ones(2))


def test_a_miss_names_its_nearest_match() -> None:
    report = opskip.explain(Broken(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8)), "silent:0")
    (miss,) = report.misses
    assert (miss.layer, miss.kind) == (0, "attention")
    assert miss.nearest.startswith(f"{miss.node} (test_explain.py:")
    assert miss.nearest.endswith("which is hidden through mul")
    assert report.skipped == ("0.ffn",)
    assert f"nearest match: {miss.nearest}" in str(report)


def test_of_several_sums_the_nearest_is_named() -> None:
    class Twice(Broken):
        def forward(self, hidden: Tensor, visual: Tensor, skip: str = "") -> Tensor:
            hidden = opskip.mark_visual(hidden, visual)
            q, k, v, _ = self.attention[0](self.norm(hidden) + hidden.tanh().exp()).chunk(4, dim=-1)
            hidden = hidden * 0.5 + nn.functional.scaled_dot_product_attention(q, k, v)
            return self.norm(hidden + self.ffn[0](self.norm(hidden)))

    report = opskip.explain(Twice(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8)), "silent:0")
    assert report.misses[0].nearest.endswith("which is hidden through mul")


def test_recompiles_carry_their_reason() -> None:
    fast = torch.compile(Decoder(), backend="opskip", options={"schedule": "silent:1", **EAGER})
    for length in (12, 15, 19):
        fast(torch.randn(1, length, 16), visual(1, length, 2, 8))
    first, second = opskip.reports()
    assert first.recompile == ""
    assert "size mismatch at index 1. expected 12, actual 15" in second.recompile
    assert second.recompile in str(second)
    assert second.to_dict()["recompile"] == second.recompile
    assert second.prompt.rows == 15


def test_only_the_newest_reports_keep_their_graphs() -> None:
    model, arguments = Decoder(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    first = opskip.explain(model, arguments, "silent:1")
    for _ in range(8):
        REPORTS.add(opskip.Report())
    kept = opskip.reports()[0]
    assert comparable(kept) == comparable(first)
    with pytest.raises(opskip.OpSkipError, match="not kept any more"):
        kept.diff()
    assert first.diff().changes, "whoever holds the report keeps the graphs"


@pytest.mark.parametrize("schedule", ["qwen3-vl-8b/20", "attend:99", {"version": 1}])
def test_a_schedule_for_another_model_is_refused_before_anything_is_changed(schedule: object) -> None:
    model = FAMILIES["llava"].build(2)
    with pytest.raises(opskip.ScheduleError):
        opskip.compile(model, schedule)  # type: ignore[arg-type]
    assert not [module for module in model.modules() if module._forward_pre_hooks or "forward" in vars(module)]
