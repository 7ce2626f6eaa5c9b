"""Whole models with quantised weights: what is skipped, what stays full and why, FLOPs as of the float model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, UNEVEN, visual_mask
from tests.helpers.own_decoder import EAGER
from tests.helpers.support.outcome import compare_16_bit

q = pytest.importorskip("torchao.quantization")
pytestmark = pytest.mark.usefixtures("fresh")

SPECS = ("late:0.5", "transform:0-3", "attend:0-3", "silent@keep=0.5:2-3")
BY_TENSOR = q.Int8DynamicActivationInt8WeightConfig(granularity=[q.PerTensor(), q.PerRow()])
CONFIGS = {
    "int8": q.Int8WeightOnlyConfig(),
    "int4": q.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=q.PerGroup(16)),
    "int8 by row": q.Int8DynamicActivationInt8WeightConfig(),
}


def quantised(family: str, config: Any) -> Any:
    model: Any = FAMILIES[family].build()
    q.quantize_(model.get_decoder(), config)
    return model


def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Of the rows that are not padding."""
    with torch.no_grad():
        found: Tensor = model(**inputs).logits[inputs["attention_mask"].bool()]
    return found


def cut(model: nn.Module, spec: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, opskip.Report]:
    torch._dynamo.reset()
    opskip.compile(model, spec, options=EAGER)
    got = logits(model, inputs)
    opskip.remove(model)
    return got, opskip.last_report()


@pytest.mark.parametrize(
    ("family", "spec", "config"),
    [("qwen3_vl", spec, "int8 by row") for spec in SPECS[:3]]
    + [("qwen3_vl", SPECS[3], "int8"), ("llava", SPECS[0], "int4"), ("llava", SPECS[0], "int8 by row")],
)
def test_it_skips_as_much_as_the_float_model(family: str, spec: str, config: str) -> None:
    inputs, model = FAMILIES[family].inputs(UNEVEN), quantised(family, CONFIGS[config])
    float_model, by_row = FAMILIES[family].build(), config == "int8 by row"
    with opskip.oracle(judge := float_model if by_row else model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = logits(judge, inputs)
    dense, exact = logits(model, inputs), logits(float_model, inputs)
    got, report = cut(model, spec, inputs)
    _, plain = cut(float_model, spec, inputs)
    if by_row:  # rounding makes steps of last bits: as close to the float model as without skipping
        compare_16_bit([got], [want], [dense], [exact])
    else:
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert report.skipped == plain.skipped != ()
    assert not report.remaining() and not [stop for stop in report.stops if stop.operator]
    assert (report.flops_before, report.flops_after) == (plain.flops_before, plain.flops_after)


def test_one_scale_for_all_rows_leaves_every_row_in() -> None:
    """Rows that are left out before such a product would round the others in another way."""
    inputs, model = FAMILIES["qwen3_vl"].inputs(UNEVEN), quantised("qwen3_vl", BY_TENSOR)
    with opskip.oracle(model, opskip.Schedule.from_spec(SPECS[0]), visual_mask(inputs)):
        want = logits(model, inputs)
    got, report = cut(model, SPECS[0], inputs)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert report.flops_after == report.flops_before
    reasons = {stop.operator: stop.reason for stop in report.stops if stop.operator}
    assert set(reasons) == {f"{layer}.{kind}" for layer in (2, 3) for kind in ("attention", "ffn")}
    assert all("goes over all rows" in reason and "PerRow()" in reason for reason in reasons.values())
    assert "computed in full" in str(report)


def test_generated_tokens_are_those_of_the_oracle() -> None:
    inputs, model = FAMILIES["llava"].inputs(), quantised("llava", CONFIGS["int8"])
    how = {"max_new_tokens": 6, "do_sample": False}
    with opskip.oracle(model, opskip.Schedule.from_spec(SPECS[0]), visual_mask(inputs)):
        want = model.generate(**inputs, **how)
    opskip.compile(model, SPECS[0], options=EAGER)
    assert model.generate(**inputs, **how).tolist() == want.tolist()
