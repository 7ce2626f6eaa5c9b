"""What the config of a family needs beyond small numbers, by the family's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.helpers.families import IMAGE
from tests.helpers.shrink import AUDIO

Values = dict[str, Any]
PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "head_dim": 8,
    "image_size": 16,
    "patch_size": 4,
}


def alternate(*types: str) -> Callable[[Values], None]:
    """Layers of these types in turn."""

    def change(values: Values) -> None:
        layers = values["text_config"]["num_hidden_layers"]
        values["text_config"]["layer_types"] = [types[i % len(types)] for i in range(layers)]

    return change


def mrope(*section: int) -> Callable[[Values], None]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)}
    return lambda values: values["text_config"].update(rope_parameters=dict(rope))


def both(*changes: Callable[[Values], None]) -> Callable[[Values], None]:
    def change(values: Values) -> None:
        for one in changes:
            one(values)

    return change


def tiles(values: Values) -> None:
    values.update(image_grid_pinpoints=[[16, 16], [32, 16]], vision_feature_layer=-1)


def aria(values: Values) -> None:
    values.update(projector_patch_to_query_dict={16: 8}, max_value_projector_patch_to_query_dict=8)


def lfm2(values: Values) -> None:
    values["vision_config"]["num_patches"] = 16


def got_ocr2(values: Values) -> None:
    values["vision_config"]["image_size"] = 32


def gemma3(values: Values) -> None:
    values["mm_tokens_per_image"] = 16


def qwen2(values: Values) -> None:
    values["vision_config"].update(embed_dim=32, hidden_size=32)


def pixtral(values: Values) -> None:
    values.update(vision_config=dict(PIXTRAL), vision_feature_layer=-1, vision_feature_select_strategy="full")
    values["text_config"]["model_type"] = "mistral"


def vipllava(values: Values) -> None:
    values["vision_feature_layers"] = [-1, -2, -2, -1, 0]
    values["vision_config"]["num_hidden_layers"] = 2


def emu3(values: Values) -> None:
    codes = {f"<|visual token {i:06d}|>": 100 + i for i in range(20)}
    values["vocabulary_map"] = {"<image>": IMAGE, "<|extra_200|>": 99, **codes}
    values["vq_config"].update(codebook_size=20, base_channels=32, channel_multiplier=[1, 1], latent_channels=32)
    values["vq_config"].update(embed_dim=32, num_res_blocks=1, hidden_size=32, attn_resolutions=[])


def llama4(values: Values) -> None:
    values["vision_config"].update(vision_output_dim=32, intermediate_size=128, pixel_shuffle_ratio=0.5)
    values["text_config"].update(num_experts_per_tok=1, intermediate_size_mlp=64)


def blip2(values: Values) -> None:
    values.update(image_token_index=IMAGE, image_token_id=IMAGE, num_query_tokens=16)
    values["text_config"].update(word_embed_proj_dim=32)
    values["qformer_config"]["num_hidden_layers"] = 1


def kimi(values: Values) -> None:
    values["text_config"].update(num_key_value_heads=4, head_dim=4, qk_head_dim=12, n_group=1, topk_group=1)
    values["vision_config"].update(pos_emb_height=8, pos_emb_width=8, num_attention_heads=4)


def ernie(values: Values) -> None:
    text = values["text_config"]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text["mlp_layer_types"] = ["dense" if i == 0 else "sparse" for i in range(text["num_hidden_layers"])]
    text["moe_intermediate_size"] = [32, 32]
    values["vision_config"].update(hidden_size=32, num_heads=4)


def mllama(values: Values) -> None:
    values["text_config"]["cross_attention_layers"] = [1]
    values["vision_config"].update(num_global_layers=1, attention_heads=4, intermediate_layers_indices=[0])
    values["vision_config"].update(vision_output_dim=64, max_num_tiles=2, image_size=16)
    values["vision_config"]["supported_aspect_ratios"] = [[1, 1], [1, 2], [2, 1]]


def janus(values: Values) -> None:
    values["vq_config"].update(num_embeddings=20, base_channels=32, channel_multiplier=[1, 1], latent_channels=32)
    values["vq_config"].update(embed_dim=32, num_res_blocks=1, image_token_embed_dim=32)


def florence2(values: Values) -> None:
    values["text_config"].update(encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64)
    values["text_config"].update(encoder_attention_heads=4, decoder_attention_heads=4)
    values["vision_config"].update(depths=[1] * 4, embed_dim=[32] * 4, num_heads=[4] * 4, num_groups=[4] * 4)


def t5gemma2(values: Values) -> None:
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


def gemma4(values: Values) -> None:
    """As the small checkpoints: embeddings of every layer, and keys and values that later layers share."""
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    small.update(num_key_value_heads=4, head_dim=8, patch_size=4, pooling_kernel_size=2, position_embedding_size=64)
    values.update(audio_config=None, vision_config={"model_type": "gemma4_vision", **small})
    text = values["text_config"]
    text.pop("per_layer_config", None)  # made new from the next line
    text.update(global_head_dim=16, num_kv_shared_layers=2)
    text.update(vocab_size_per_layer_input=200, hidden_size_per_layer_input=8)


def gemma4_moe(values: Values) -> None:
    """As the large checkpoints: experts beside the FFN, values that are the keys, images that read both ways."""
    gemma4(values)
    text = values["text_config"]
    text.update(hidden_size_per_layer_input=0, num_kv_shared_layers=0, use_bidirectional_attention="vision")
    text.update(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=16)
    text.update(attention_k_eq_v=True, num_global_key_value_heads=1)


def gemma4_unified(values: Values) -> None:
    gemma4(values)
    for key in ("vocab_size_per_layer_input", "hidden_size_per_layer_input", "num_kv_shared_layers"):
        values["text_config"].pop(key)
    vision = {"model_type": "gemma4_unified_vision", "patch_size": 4, "pooling_kernel_size": 1}
    values["vision_config"] = {**vision, "mm_embed_dim": 32, "mm_posemb_size": 64, "output_proj_dims": 32}


def molmo2(values: Values) -> None:
    values["vision_config"].update(image_size=[16, 16], num_position_embeddings=16, head_dim=8)
    values["adapter_config"].update(vision_feature_layer=[0], head_dim=8, num_key_value_heads=4)
    values["text_config"].update(rope_scaling_layers=None, additional_vocab_size=8)
    values["image_patch_id"] = IMAGE


def hunyuan(values: Values) -> None:
    mrope(2, 1, 1)(values)
    values["text_config"]["head_dim"] = 8
    values["vision_config"].update(max_image_size=64, temporal_patch_size=1)


OMNI_BOUNDS = {"vision_start_token_id": 192, "audio_start_token_id": 195, "audio_end_token_id": 196}


def omni(values: Values) -> None:
    mrope(2, 1, 1)(values)
    values["audio_config"].update(encoder_attention_heads=4, encoder_ffn_dim=64, encoder_layers=1)
    values["vision_config"].update(deepstack_visual_indexes=[0])
    values.update(image_token_id=IMAGE, video_token_id=191, audio_token_id=AUDIO, **OMNI_BOUNDS)


def audio(**fields: Any) -> Callable[[Values], None]:
    """The tower of sounds; audio tokens stand where images of other families do."""

    def change(values: Values) -> None:
        values["audio_config"].update(num_mel_bins=16, **fields)
        values.update({key: IMAGE for key in ("audio_token_id", "audio_token_index") if key in values})

    return change


WHISPER = {"encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "max_source_positions": 16}


def granite_speech(values: Values) -> None:
    values["encoder_config"].update(input_dim=16, hidden_dim=32, dim_head=8, context_size=8, num_layers=2, dropout=0.0)
    values.update(audio_token_index=IMAGE, has_lora_adapter=False)


def omni25(values: Values) -> None:
    mrope(2, 1, 1)(values)
    values["audio_config"].update({**WHISPER, "max_source_positions": 64})
    values["vision_config"].update(fullatt_block_indexes=[0])
    values.update(OMNI_BOUNDS)


CHANGES: dict[str, Callable[[Values], None]] = {
    "qwen2_vl": both(qwen2, mrope(2, 1, 1)),
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision"), tiles),
    "vipllava": vipllava,
    "pixtral": pixtral,
    "gemma3": both(gemma3, alternate("sliding_attention", "full_attention")),
    **dict.fromkeys(("glm4v", "glm46v"), mrope(2, 1, 1)),
    "glm4v_moe": mrope(1, 1, 0),
    "paddleocr_vl": mrope(2, 1, 1),
    "aria": aria,
    "lfm2_vl": both(lfm2, alternate("conv", "full_attention")),
    "llama4": both(llama4, alternate("chunked_attention", "full_attention")),
    "got_ocr2": got_ocr2,
    "emu3": emu3,
    "kimi_k25": kimi,
    "blip-2": blip2,
    "janus": janus,
    "ernie4_5_vl_moe": ernie,
    "mllama": mllama,
    "florence2": florence2,
    "t5gemma2": t5gemma2,
    "gemma4": both(gemma4, alternate("sliding_attention", "full_attention")),
    "gemma4_moe": both(gemma4_moe, alternate("sliding_attention", "full_attention")),
    "gemma4_unified": both(gemma4_unified, alternate("sliding_attention", "full_attention")),
    "molmo2": molmo2,
    "hunyuan_vl": hunyuan,
    "glm_ocr": mrope(2, 1, 1),
    "qwen3_omni_moe_thinker": omni,
    "qwen2_5_omni_thinker": omni25,
    "qwen2_audio": audio(**WHISPER),
    "voxtral": audio(intermediate_size=128, max_source_positions=16),
    **dict.fromkeys(("audioflamingo3", "musicflamingo"), audio(num_hidden_layers=1, max_source_positions=16)),
    "glmasr": audio(num_hidden_layers=1, num_key_value_heads=4, intermediate_size=128),
    "qwen3_asr": audio(encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=64, n_window=16),
    "granite_speech": granite_speech,
}
