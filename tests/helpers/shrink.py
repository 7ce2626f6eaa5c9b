"""Any image-text-to-text family of transformers at small size: its default config with small numbers put in.

One table of field names does for nearly all of them, which is the point: nothing is prepared for a family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.helpers.families import IMAGE, VISION_END, VISION_START

AUDIO, VIDEO = 194, 191
_AUTO = (
    transformers.AutoModelForImageTextToText,
    transformers.AutoModelForMultimodalLM,
    transformers.AutoModelForSeq2SeqLM,
)
_WIDTHS = (
    "hidden_size d_model embed_dim out_hidden_size projection_dim projector_hidden_size projection_hidden_size "
    "vision_hidden_size text_hidden_size encoder_hidden_size projector_input_dim projector_output_dim output_dim"
)
_SMALL: dict[str, int] = {
    **dict.fromkeys(_WIDTHS.split(), 32),
    **dict.fromkeys("intermediate_size ffn_dim dense_intermediate_size alignment_intermediate_size".split(), 64),
    **dict.fromkeys("moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size".split(), 32),
    **dict.fromkeys("num_attention_heads num_heads linear_num_value_heads index_n_heads".split(), 4),
    **dict.fromkeys("num_experts num_local_experts n_routed_experts moe_num_experts".split(), 4),
    **dict.fromkeys("num_experts_per_tok moe_k num_key_value_heads linear_num_key_heads n_groups".split(), 2),
    **dict.fromkeys("n_group topk_group n_shared_experts moe_num_shared_experts first_k_dense_replace".split(), 1),
    **dict.fromkeys("head_dim linear_key_head_dim linear_value_head_dim index_head_dim rotary_dim".split(), 8),
    **dict.fromkeys("qk_nope_head_dim v_head_dim sliding_window".split(), 8),
    **dict.fromkeys("q_lora_rank kv_lora_rank".split(), 16),
    **dict.fromkeys("index_topk index_topk_blocks attention_chunk_size num_position_embeddings".split(), 64),
    "qk_rope_head_dim": 4,
    "vocab_size": 200,
    "max_position_embeddings": 512,
    "resampler_n_latents": 4,
    "resampler_n_heads": 4,
    "resampler_head_dim": 8,
    "resampler_depth": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    **dict.fromkeys("depth num_hidden_layers num_layers".split(), 1),
    "image_size": 16,
    "patch_size": 4,
    "num_key_value_heads": 4,
    "temporal_patch_size": 2,
}
# Made new from the small numbers by the config class.
_DERIVED = frozenset(
    "layer_types mlp_layer_types rope_parameters layers_block_type moe_layers no_rope_layers indexer_types id2label "
    "label2id transformers_version dtype experts_implementation model_type".split()
)


def _shrink(values: dict[str, Any], part: str, layers: int) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for key, value in values.items():
        is_count = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, dict) and key.endswith("_config"):
            kept = {"model_type": value["model_type"]} if "model_type" in value else {}
            small[key] = {**_shrink(value, "text" if "text" in key else "vision", layers), **kept}
        elif key in _DERIVED:
            continue
        elif part == "vision" and key in _VISION and is_count:
            small[key] = _VISION[key]
        elif part == "text" and key == "num_hidden_layers":
            small[key] = layers
        elif is_count and key.endswith(("token_id", "token_index")) and key not in _SMALL:
            small[key] = _token(key, value)
        else:
            small[key] = _SMALL[key] if key in _SMALL and is_count else value
    if "tie_word_embeddings" in small:
        small["tie_word_embeddings"] = False
    return small


def _token(key: str, value: int) -> int:
    named = {"image_token_id": IMAGE, "image_token_index": IMAGE, "video_token_id": VIDEO, "video_token_index": VIDEO}
    if "audio" in key:
        return AUDIO
    return named.get(key) or (VISION_START if "start" in key else VISION_END if "end" in key else min(value, 199))


def build(family: str, layers: int = 4, change: Callable[[dict[str, Any]], None] | None = None) -> nn.Module:
    """A model of ``family`` (a key of transformers' config mapping) with the same random weights every time."""
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    torch.manual_seed(0)
    whole = CONFIG_MAPPING[family]
    values = _shrink(whole().to_dict(), "whole", layers)
    if change is not None:
        change(values)
    config = whole(**values)
    model = next(auto for auto in _AUTO if type(config) in auto._model_mapping).from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all() or (parameter.dim() > 1 and not parameter.any()):
                parameter.normal_(0, 0.05)
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif not any(word in name for word in ("vision", "visual", "audio")):
                parameter.mul_(3)
    return model


def prompt(images: int, grid: bool = False) -> dict[str, Tensor]:
    """Three rows of text, ``images`` visual rows and five rows of text."""
    image = [VISION_START, *[IMAGE] * images, VISION_END] if grid else [IMAGE] * images
    ids = torch.tensor([[5, 6, 7, *image, 8, 9, 10, 11, 12]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
