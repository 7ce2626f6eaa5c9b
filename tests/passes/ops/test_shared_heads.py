"""Kept queries under a mask where several heads share keys: on a GPU each head gets its own, as in transformers."""

from __future__ import annotations

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.passes.ops import attention, op_name
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.grabbed import grab

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "transform:0"


@pytest.mark.parametrize("on_gpu", [False, True])
def test_keys_for_all_heads(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_wants_all_heads", lambda query: on_gpu)
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.build(2), family.inputs()
    del inputs["attention_mask"]  # without one transformers leaves the mask to the kernel
    with torch.no_grad(), opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = model(**inputs).logits
    grabbed = grab(model, inputs, SPEC)
    assert len(grabbed.report.skipped) == 1
    kept = next(node for node in grabbed.after.graph.nodes if op_name(node) == "scaled_dot_product_attention")
    assert kept.kwargs["enable_gqa"] is not on_gpu
    assert any(op_name(node) == "repeat_interleave" for node in grabbed.after.graph.nodes) is on_gpu
    counted = grabbed.report.operators[0]
    assert counted.flops_before is not None
    assert counted.flops_after is not None
    assert counted.flops_after < counted.flops_before
    with torch.no_grad():
        opskip.compile(model, SPEC, options={"lower": "eager"})
        torch.testing.assert_close(model(**inputs).logits, want)
