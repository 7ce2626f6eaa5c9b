"""What the cells of the support matrix do not show of a family: how many operators, what stays, warnings, Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import opskip_compile as opskip
from opskip_compile.passes.analysis.cross_attention import ENCODER, OUTSIDE
from opskip_compile.passes.refusal import Refusal
from tests.helpers.families import visual_mask
from tests.helpers.releases import since_5_23
from tests.helpers.support import ZOO
from tests.helpers.support.basic import bare, logits_and_cache
from tests.helpers.support.outcome import SPEC, assert_equal, in_place

pytestmark = pytest.mark.usefixtures("fresh")
# A recurrence needs every row; what follows it does not.
RECURRENT = {
    "lfm2_vl": {"linear", "mean", "rsqrt"},
    "qwen3_5_moe": {"linear", "matmul", "mean", "rsqrt", "sigmoid", "silu"},
}


EXPERTS = since_5_23("experts are computed for every row, and Aria is dense")


@pytest.mark.parametrize(
    "family",
    [
        *(pytest.param(name, marks=EXPERTS) for name in ("aria", "glm4v_moe", "qwen3_vl_moe", "qwen3_5_moe")),
        "llama4",
        "blip-2",
        "lfm2_vl",
    ],
)
def test_attention_and_ffn_of_every_layer(family: str) -> None:
    """Routed and shared experts are one operator; a flattened stream hides none."""
    report = opskip.explain(ZOO[family].build(), ZOO[family].inputs(), schedule=SPEC)
    assert [op.name for op in report.operators] == [f"{i}.{kind}" for i in range(4) for kind in ("attention", "ffn")]
    assert not report.misses
    assert len(report.skipped) == 6
    assert {name for name, count in report.remaining().items() if count} <= RECURRENT.get(family, set())


@EXPERTS
@pytest.mark.parametrize("family", ["aria", "qwen3_vl_moe"])
def test_experts_in_bfloat16_leave_rows_out(family: str) -> None:
    """In 16 bit they are torch's own grouped product, with arguments for bias and type that are not given."""
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in ZOO[family].inputs().items()}
    report = opskip.explain(ZOO[family].build(dtype=torch.bfloat16), inputs, schedule=SPEC)
    assert len(report.skipped) == 6
    assert not report.remaining()


@pytest.mark.parametrize("install", [bare, in_place])
@pytest.mark.parametrize(
    ("family", "why"), [("mllama", OUTSIDE), ("t5gemma2", ENCODER), ("florence2", ENCODER)], ids=str
)
def test_why_nothing_is_skipped(family: str, why: Refusal, install: Callable[[nn.Module, str], Any]) -> None:
    """Cross-attention, and encoders that a graph break parts from the decoder: dense, with a warning in one line."""
    model, inputs = ZOO[family].build(), ZOO[family].inputs()
    want = model(**inputs).logits
    with pytest.warns(opskip.NothingSkippedWarning, match=why.reason):
        got = install(model, SPEC)(**inputs).logits
    assert torch.equal(got, want)
    assert why in {report.refusal for report in opskip.reports()}


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("family", "attention"),
    [("qwen3_vl_moe", "sdpa"), ("qwen3_5_moe", "sdpa"), ("llama4", "sdpa"), ("llava", "eager")],
)
def test_inductor_equals_the_oracle(family: str, attention: str) -> None:
    """Batched products of rows whose number is known only when the graph runs are among the operations."""
    # In four layers of Qwen3.5 three are recurrent.
    layers, spec = (4, SPEC) if family == "qwen3_5_moe" else (2, "silent:1 transform:0")
    model, inputs = ZOO[family].build(layers), ZOO[family].inputs()
    model.set_attn_implementation(attention)
    try:
        model(**inputs)
    except AttributeError as error:
        if "image_outputs" not in str(error):
            raise
        pytest.skip(f"dense {family} of this transformers fails by itself: {error}")  # Llama 4 in 5.24
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = logits_and_cache(model(**inputs))
    assert_equal(logits_and_cache(opskip.compile(model, spec)(**inputs)), want)
    assert opskip.last_report().rewritten
