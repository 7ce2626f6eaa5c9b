"""Decoders that nothing was written for: the mechanism carries them, or says what it leaves in full."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from families import _QWEN_TOKENS, _QWEN_VISION, IMAGE, VISION_END, VISION_START, _rope, _text, visual_mask
from torch import Tensor, nn

import opskip_compile as opskip

Built = tuple[object, dict[str, Tensor]]
_VIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
_SIGLIP = {"model_type": "siglip_vision_model", **_VIT}
_PINPOINTS = [[16, 16], [32, 16]]


def _prompt(count: int = 16, grid: bool = False) -> dict[str, Tensor]:
    image = [VISION_START, *[IMAGE] * count, VISION_END] if grid else [IMAGE] * count
    ids = torch.tensor([[5, 6, *image, 7, 8, 9, 10]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _patches(prompt: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        **prompt,
        "pixel_values": torch.randn(64, 96),
        "image_grid_thw": torch.tensor([[1, 8, 8]]),
        "mm_token_type_ids": (prompt["input_ids"] == IMAGE).int(),
    }


def gemma3() -> Built:
    """Norms after the operator, sliding windows, attention in both directions inside an image."""
    text = _text(4, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=_SIGLIP, mm_tokens_per_image=16, image_token_id=IMAGE
    )
    prompt = _prompt()
    types = (prompt["input_ids"] == IMAGE).long()
    return config, {**prompt, "pixel_values": torch.randn(1, 3, 16, 16), "token_type_ids": types}


def paligemma() -> Built:
    """A prefix that sees itself in both directions."""
    text = _text(4, model_type="gemma", head_dim=8)
    config = transformers.PaliGemmaConfig(
        text_config=text, vision_config={**_SIGLIP, "projection_dim": 32}, image_token_index=IMAGE, projection_dim=32
    )
    prompt = _prompt()
    types = torch.zeros_like(prompt["input_ids"])
    return config, {**prompt, "pixel_values": torch.randn(1, 3, 16, 16), "token_type_ids": types}


def mistral3() -> Built:
    """A Pixtral tower."""
    vision = {**_VIT, "model_type": "pixtral", "image_size": 32, "head_dim": 8}
    text = _text(4, model_type="mistral", head_dim=8)
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=IMAGE)
    return config, {**_prompt(), "pixel_values": torch.randn(1, 3, 32, 32), "image_sizes": torch.tensor([[32, 32]])}


def qwen2_vl() -> Built:
    """Merge and decoder in two graphs."""
    vision = {**_QWEN_VISION, "embed_dim": 32, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(
        text_config=_text(4, rope_parameters=_rope()), vision_config=vision, **_QWEN_TOKENS
    )
    return config, _patches(_prompt(grid=True))


def llava_next() -> Built:
    """Several tiles of one image."""
    config = transformers.LlavaNextConfig(
        text_config=_text(4, model_type="mistral", head_dim=8),
        vision_config={**_VIT, "model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=IMAGE,
        image_grid_pinpoints=_PINPOINTS,
    )
    return config, {
        **_prompt(36),
        "pixel_values": torch.randn(1, 2, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]]),
    }


def llava_onevision() -> Built:
    """A Qwen2 decoder behind tiles."""
    config = transformers.LlavaOnevisionConfig(
        text_config=_text(4, model_type="qwen2"),
        vision_config=_SIGLIP,
        image_token_index=IMAGE,
        video_token_index=191,
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-1,
    )
    return config, {
        **_prompt(36),
        "pixel_values": torch.randn(1, 2, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]]),
    }


def qwen3_vl_moe() -> Built:
    """Routed experts: row by row in meaning, not in spelling."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision = {**_QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    text = _text(4, head_dim=8, rope_parameters=_rope(mrope_interleaved=True), **experts)
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **_QWEN_TOKENS)
    return config, _patches(_prompt(grid=True))


FAMILIES = [gemma3, paligemma, mistral3, qwen2_vl, llava_next, llava_onevision, qwen3_vl_moe]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("how", ["bare", "opskip.compile"])
def test_equals_the_oracle(family: Callable[[], Built], how: str) -> None:
    torch.manual_seed(0)
    config, inputs = family()
    model: nn.Module = transformers.AutoModelForImageTextToText.from_config(config).eval()
    spec, options = "silent:2 transform:0 attend:1,3", {"lower": "eager"}
    torch._dynamo.reset()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameter + 0.1 if parameter.dim() == 1 else parameter * (3 if "language" in name else 1))
        with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
            want = model(**inputs).logits
        dense = model(**inputs).logits
        if how == "bare":
            got = torch.compile(model, backend="opskip", options={"schedule": spec, **options})(**inputs).logits
        else:
            got = opskip.compile(model, spec, options=options)(**inputs).logits
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert (dense - want).abs().max() > 1e-2 * want.abs().max()
    report = opskip.last_report()
    assert len(report.skipped) == 5
    assert not report.remaining()
