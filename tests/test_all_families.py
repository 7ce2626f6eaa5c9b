"""Families that nothing was written for, built from their default configs: mixtures of experts, hybrids, encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import IMAGE, visual_mask
from shrink import build, prompt
from torch import Tensor

import opskip_compile as opskip
from opskip_compile.passes.crossing import ENCODER, OUTSIDE

pytestmark = pytest.mark.usefixtures("fresh")
Change = Callable[[dict[str, Any]], None]
SPECS = ("silent:2-3 transform:0 attend:1", "silent@through_visual:1-3 transform:0")


def picture(*shape: int, **more: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(*shape, generator=torch.Generator().manual_seed(1)), **more}


GRID = picture(64, 96, image_grid_thw=torch.tensor([[1, 8, 8]]))
ONE, TILE = picture(1, 3, 16, 16), picture(1, 1, 3, 16, 16)
SIGLIP2 = picture(1, 16, 48, spatial_shapes=torch.tensor([[4, 4]]), pixel_attention_mask=torch.ones(1, 16).long())


def mrope(section: list[int]) -> Change:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section}
    return lambda values: values["text_config"].update(rope_parameters=rope)


def aria(values: dict[str, Any]) -> None:
    values.update(projector_patch_to_query_dict={16: 8}, max_value_projector_patch_to_query_dict=8)


def lfm2(values: dict[str, Any]) -> None:
    values["vision_config"]["num_patches"] = 16
    values["text_config"]["layer_types"] = ["conv", "full_attention"] * 2


# family -> visual rows, image inputs, what its config needs beyond small numbers, operations that may stay in full
FAMILIES: dict[str, tuple[int, dict[str, Tensor], Change | None, set[str]]] = {
    "aya_vision": (4, ONE, None, set()),
    "cohere2_vision": (4, ONE, None, set()),
    "smolvlm": (4, TILE, None, set()),
    "idefics2": (4, TILE, None, set()),
    "glm4v": (16, GRID, mrope([2, 1, 1]), set()),
    "glm4v_moe": (16, GRID, mrope([1, 1, 0]), set()),
    "qwen3_vl_moe": (16, GRID, None, set()),
    "aria": (8, ONE, aria, set()),
    # A recurrence needs every row; what follows it does not.
    "lfm2_vl": (4, SIGLIP2, lfm2, {"linear", "mean", "rsqrt"}),
    "qwen3_5_moe": (16, GRID, None, {"linear", "matmul", "mean", "rsqrt", "sigmoid", "silu"}),
}


def inputs_of(family: str) -> dict[str, Tensor]:
    rows, image, _, _ = FAMILIES[family]
    found = {**prompt(rows, grid="image_grid_thw" in image), **image}
    if "image_grid_thw" in image:
        found["mm_token_type_ids"] = visual_mask(found).int()
    return found


def cache_of(outputs: Any) -> list[Tensor]:
    values = [getattr(layer, name, None) for layer in outputs.past_key_values.layers for name in ("keys", "values")]
    return [value for value in values if isinstance(value, Tensor)]


def assert_close(got: Any, want: Any) -> None:
    pairs = [(got.logits, want.logits), *zip(cache_of(got), cache_of(want), strict=True)]
    assert all((a - b).abs().max() <= 1e-4 * b.abs().max() for a, b in pairs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("how", "spec"), [("bare", SPECS[0]), ("opskip.compile", SPECS[0]), ("opskip.compile", SPECS[1])]
)
def test_equals_the_oracle(family: str, how: str, spec: str) -> None:
    _, _, change, in_full = FAMILIES[family]
    model, inputs = build(family, change=change), inputs_of(family)
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = model(**inputs)
    dense = model(**inputs)
    if how == "bare":
        got = torch.compile(model, backend="opskip", options={"schedule": spec, "lower": "eager"})(**inputs)
    else:
        got = opskip.compile(model, spec, options={"lower": "eager"})(**inputs)
    assert_close(got, want)
    assert (dense.logits - want.logits).abs().max() > 1e-3 * want.logits.abs().max()
    report = opskip.last_report()
    assert not report.misses
    assert len(report.skipped) == (6 if spec == SPECS[0] else 7)
    assert len(report.operators) == 8, "summands of one addition are one operator"
    assert {name for name, count in report.remaining().items() if count} <= in_full


@pytest.mark.inductor
@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_inductor_equals_the_oracle(family: str) -> None:
    model, inputs = build(family, change=FAMILIES[family][2]), inputs_of(family)
    with opskip.oracle(model, opskip.Schedule.from_spec(SPECS[0]), visual_mask(inputs)):
        want = model(**inputs)
    assert_close(opskip.compile(model, SPECS[0])(**inputs), want)
    assert opskip.last_report().rewritten


@pytest.mark.parametrize("how", ["bare", "opskip.compile"])
def test_cross_attention_is_the_reason(how: str) -> None:
    """Mllama has no visual rows in its stream: dense, and the report and a warning say why in one line."""

    def change(values: dict[str, Any]) -> None:
        values["text_config"]["cross_attention_layers"] = [1]
        values["vision_config"].update(num_global_layers=1, attention_heads=4, intermediate_layers_indices=[0])
        values["vision_config"].update(vision_output_dim=64, max_num_tiles=2, image_size=16)
        values["vision_config"]["supported_aspect_ratios"] = [[1, 1], [1, 2], [2, 1]]

    model = build("mllama", change=change)
    inputs = {**prompt(1), **picture(1, 1, 2, 3, 16, 16), "aspect_ratio_ids": torch.tensor([[1]])}
    inputs["aspect_ratio_mask"] = torch.tensor([[[1, 0]]])
    inputs["cross_attention_mask"] = torch.ones(1, 9, 1, 2, dtype=torch.long)
    want = model(**inputs).logits
    options = {"lower": "eager", "schedule": SPECS[0]}
    with pytest.warns(opskip.NothingSkippedWarning, match=OUTSIDE):
        if how == "bare":
            got = torch.compile(model, backend="opskip", options=options)(**inputs).logits
        else:
            got = opskip.compile(model, options=options)(**inputs).logits
    assert torch.equal(got, want)
    assert OUTSIDE in {report.reason for report in opskip.reports()}


@pytest.mark.parametrize("how", ["bare", "opskip.compile"])
def test_an_encoder_is_left_alone(how: str) -> None:
    """T5Gemma 2 merges the image in its encoder, which a graph break parts from the decoder."""

    def change(values: dict[str, Any]) -> None:
        encoder, decoder = values["encoder"], values["decoder"]
        for text in (encoder["text_config"], decoder):
            text.update(num_hidden_layers=4, hidden_size=32, intermediate_size=64, num_attention_heads=4, head_dim=8)
            text.update(num_key_value_heads=2, vocab_size=200, pad_token_id=0, bos_token_id=1, eos_token_id=2)
            for key in ("layer_types", "rope_parameters"):
                text.pop(key, None)
        vision = encoder["vision_config"]
        vision.update(num_hidden_layers=1, hidden_size=32, intermediate_size=64, num_attention_heads=4)
        vision.update(image_size=16, patch_size=4)
        encoder.update(mm_tokens_per_image=16, image_token_index=IMAGE)

    model = build("t5gemma2", change=change)
    inputs = {**prompt(16), **ONE, "decoder_input_ids": torch.tensor([[2, 3, 4]])}
    want = model(**inputs).logits
    options = {"lower": "eager", "schedule": SPECS[0]}
    with pytest.warns(opskip.NothingSkippedWarning, match=ENCODER):
        if how == "bare":
            got = torch.compile(model, backend="opskip", options=options)(**inputs).logits
        else:
            got = opskip.compile(model, options=options)(**inputs).logits
    assert torch.equal(got, want)
    assert ENCODER in {report.reason for report in opskip.reports()}
