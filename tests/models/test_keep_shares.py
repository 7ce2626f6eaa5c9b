"""Keep shares in real decoders: what the report counts, what is refused and why, and what it costs to compile.

That the result is the oracle's is what the column "keep shares" of the support matrix and the random cases show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import opskip_compile as opskip
from opskip_compile.passes.analysis.scored import LAYER_ALONE, NO_SCORES, PARTLY, SPLIT
from tests.helpers.families import FAMILIES, ONE_IMAGE, UNEVEN, visual_mask
from tests.helpers.own_decoder import EAGER, Decoder, visual

pytestmark = pytest.mark.usefixtures("fresh")
SPECS = ("silent@keep=0.5:1-3", "attend@keep=0.25:0,2-3 transform@keep=0.5:0,3", "transform@keep=0.3:all", "attend:1")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_the_graph_costs_what_the_formula_says(name: str, spec: str) -> None:
    family = FAMILIES[name]
    model = family.build(4)
    counted = opskip.count_flops(opskip.explain(model, family.inputs(ONE_IMAGE), spec))
    text = counted.text_tokens
    formula = opskip.count_flops(model, visual_tokens=counted.visual_tokens, text_tokens=text, schedule=spec)
    by_operator = [(item.layer, item.operator, item.dense, item.skipped) for item in counted.operators]
    assert by_operator == [(item.layer, item.operator, item.dense, item.skipped) for item in formula.operators]


def test_the_report_says_how_many_rows_are_updated() -> None:
    family = FAMILIES["llava"]
    report = opskip.explain(family.build(2), family.inputs(ONE_IMAGE), "attend@keep=0.3:1")
    (skipped,) = [operator for operator in report.operators if operator.skipped]
    prompt = report.prompt
    assert skipped.rows == "visual,keep=0.3"
    assert skipped.rows_after == prompt.rows - 16 + 5  # ceil(0.3 * 16)
    assert report.schedule == "attend@keep=0.3:1"


def test_everything_kept_is_dense_and_nothing_kept_is_skipping() -> None:
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.build(3), family.inputs(UNEVEN)

    def logits(spec: str) -> torch.Tensor:
        torch._dynamo.reset()
        opskip.compile(model, spec, options=EAGER)
        return model(**inputs).logits

    assert torch.equal(logits("silent@keep=1:0-2"), logits("none"))
    assert torch.equal(logits("silent@keep=0:1-2"), logits("silent:1-2"))
    small, large = logits("silent@keep=0.25:1-2"), logits("silent@keep=0.75:1-2")
    dense, nothing = logits("none"), logits("silent:1-2")
    assert len({tuple(each.flatten().tolist()) for each in (small, large, dense, nothing)}) == 4


@pytest.mark.parametrize(("attention", "regional", "why"), [("eager", False, NO_SCORES), ("sdpa", True, LAYER_ALONE)])
def test_where_no_attention_tells_an_operator_stays_full_and_says_why(attention: str, regional: bool, why: str) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    model.set_attn_implementation(attention)
    want = model(**inputs).logits
    opskip.compile(model, "attend@keep=0.5:1", options=EAGER, regional=regional)
    with pytest.warns(opskip.NothingSkippedWarning, match="critical rows"):
        got = model(**inputs).logits
    torch.testing.assert_close(got, want)
    assert why in {miss.reason for report in opskip.reports() for miss in report.misses}
    assert not any(report.rewritten for report in opskip.reports())


class Split(Decoder):
    """The FFNs are summed over all processes, as where each has a part of the weights."""

    def decode(self, hidden: Tensor, visual: Tensor, skip: str = "") -> Tensor:
        for attention, ffn in zip(self.attention, self.ffn, strict=True):
            q, k, v, _ = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in attention(self.norm(hidden)).chunk(4, -1))
            update = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            hidden = hidden + update.transpose(1, 2).flatten(2)
            update = torch.nn.functional.silu(ffn(self.norm(hidden)))
            distributed.all_reduce(update)
            hidden = hidden + update
        return self.last(hidden)


@pytest.mark.skipif(not distributed.is_available(), reason="PyTorch was built without torch.distributed")
@pytest.mark.filterwarnings("ignore::opskip_compile.NothingSkippedWarning")
@pytest.mark.parametrize(("spec", "skipped"), [("attend@keep=0.5:1", 0), ("attend:1", 1)])
def test_heads_of_several_processes_give_no_scores(spec: str, skipped: int, tmp_path: Path) -> None:
    """A process knows the attention of its own heads only, and would choose other rows than the next."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = torch.compile(Split(), backend="opskip", options={"schedule": spec, **EAGER})
        model(torch.randn(2, 12, 16), visual(2, 12, 2, 9))
    finally:
        distributed.destroy_process_group()
    report = opskip.last_report()
    assert len(report.skipped) == skipped
    assert [miss.reason for miss in report.misses] == [SPLIT] * (1 - skipped)


class Sink(Decoder):
    """Every attention but the first has one key more, after those of the rows."""

    def decode(self, hidden: Tensor, visual: Tensor, skip: str = "") -> Tensor:
        for i, (attention, ffn) in enumerate(zip(self.attention, self.ffn, strict=True)):
            q, k, v, _ = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in attention(self.norm(hidden)).chunk(4, -1))
            if i:
                k, v = (torch.cat([x, torch.zeros_like(x[:, :, :1])], 2) for x in (k, v))
            update = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            hidden = hidden + update.transpose(1, 2).flatten(2)
            hidden = hidden + torch.nn.functional.silu(ffn(self.norm(hidden)))
        return self.last(hidden)


@pytest.mark.parametrize(("spec", "skipped"), [("attend@keep=0.5:0-1 transform@keep=0.5:1", 2), ("attend:0-1", 2)])
def test_no_score_leaves_an_attention_out(spec: str, skipped: int) -> None:
    """Where the keys of one attention can't be found, what runs before it has scores, and what runs after it none."""
    model = torch.compile(Sink(), backend="opskip", options={"schedule": spec, **EAGER})
    model(torch.randn(2, 12, 16), visual(2, 12, 2, 9))
    report = opskip.last_report()
    assert len(report.skipped) == skipped
    assert [miss.reason for miss in report.misses] == ([PARTLY] if "keep" in spec else [])


def sink_first(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **more: Any
) -> tuple[Tensor, None]:
    """Attention with one more key, of zeros, before those of the rows."""
    key, value = (x.repeat_interleave(getattr(module, "num_key_value_groups", 1), 1) for x in (key, value))
    key, value = (torch.cat([torch.zeros_like(x[:, :, :1]), x], 2) for x in (key, value))
    mask = None if mask is None else torch.cat([torch.ones_like(mask[..., :1]), mask], -1)
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("opskip_tests_sink_first", sink_first)
AttentionMaskInterface.register("opskip_tests_sink_first", sdpa_mask)


@pytest.mark.parametrize("spec", ["attend@keep=0.25:1", "silent@keep=0.5:1-3"])
def test_keys_of_no_row_come_before_those_of_the_rows(spec: str) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(4), family.inputs(UNEVEN)
    model.set_attn_implementation("opskip_tests_sink_first")
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = model(**inputs).logits
    got = opskip.compile(model, spec, options=EAGER)(**inputs).logits
    shown = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[shown], want[shown], rtol=1e-4, atol=1e-5)
    assert len(opskip.last_report().skipped) == (1 if "attend" in spec else 6)


def test_strict_raises() -> None:
    family = FAMILIES["llava"]
    model = family.build(2)
    model.set_attn_implementation("eager")
    opskip.compile(model, "attend@keep=0.5:1", options={**EAGER, "strict": True})
    with pytest.raises(Exception, match=r"1\.ffn stays full .* critical rows can't be told"):
        model(**family.inputs())


@pytest.mark.inductor
def test_inductor_equals_the_oracle_with_layers_shared() -> None:
    """Two layouts of a batch with padding: layers that are alike stay one region, and rows differ from call to call."""
    family, spec = FAMILIES["llava"], "attend@keep=0.5:0-3"
    model = family.build(4)
    opskip.compile(model, spec)
    for layout in (UNEVEN, tuple(tuple(reversed(element)) for element in UNEVEN)):
        inputs = family.inputs(layout)
        got = model(**inputs).logits
        opskip.remove(model)
        with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
            want = model(**inputs).logits
        opskip.compile(model, spec)
        shown = inputs["attention_mask"].bool()
        torch.testing.assert_close(got[shown], want[shown], rtol=1e-4, atol=1e-5)
    report = opskip.last_report()
    assert len(report.skipped) == 4
    assert {done.name: done.changed for done in report.passes}["regions"] == 4
