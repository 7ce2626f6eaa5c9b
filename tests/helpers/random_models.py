"""Random text decoders of transformers: the class, its sizes and every switch of its config that changes the graph."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 32
# One name for each decoder that is written differently from the others.
FAMILIES = (
    "llama qwen2 qwen3 mistral ministral gemma gemma2 gemma3_text phi phi3 cohere cohere2 olmo olmo2 olmo3 glm glm4 "
    "gpt_neox starcoder2 granite stablelm nemotron smollm3 qwen2_moe qwen3_moe mixtral olmoe granitemoe deepseek_v3 "
    "gpt_oss arcee apertus helium exaone4 ernie4_5 seed_oss qwen2_vl_text qwen2_5_vl_text qwen3_vl_text "
    "qwen3_vl_moe_text glm4v_text doge diffllama"
).split()
_CLASSES = {
    "qwen2_vl_text": "Qwen2VLTextModel",
    "qwen2_5_vl_text": "Qwen2_5_VLTextModel",
    "qwen3_vl_text": "Qwen3VLTextModel",
    "qwen3_vl_moe_text": "Qwen3VLMoeTextModel",
    "glm4v_text": "Glm4vTextModel",
}
# Switches that are a bool in some config.
_SWITCHES = (
    "attention_bias mlp_bias use_bias use_qkv_bias qkv_bias bias use_qk_norm qk_layernorm use_parallel_residual "
    "norm_topk_prob tie_word_embeddings attention_out_bias"
).split()
_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")
_KEPT_ROPE = ("gemma3_text", "deepseek_v3", "gpt_oss", "olmo3", "phi3")
_KEPT_ACTIVATION = ("apertus", "gpt_oss")


def random_config(rng: Random, family: str) -> Any:
    """A config of ``family`` at tiny size; what the default config does not name is not set."""
    whole = CONFIG_MAPPING[family]
    known = whole().to_dict()
    layers, heads, head_dim = rng.choice((1, 1, 2, 2, 3, 4)), rng.choice((2, 4)), rng.choice((4, 8))
    layers = max(layers, 2) if family in ("gemma3_text", "cohere2", "deepseek_v3", "gpt_oss") else layers
    free = "head_dim" in known and family not in _CLASSES and family != "helium"
    width = rng.choice((16, 24, 32)) if free else heads * head_dim
    kv_heads = rng.choice([n for n in (1, 2, 4) if n <= heads])
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": width,
        "intermediate_size": rng.choice((16, 24, 40)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if family in ("deepseek_v3", "diffllama") else kv_heads,
        "head_dim": 4 if family == "deepseek_v3" else head_dim,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "moe_intermediate_size": rng.choice((8, 16)),
        "shared_expert_intermediate_size": 16,
        **dict.fromkeys("num_experts num_local_experts n_routed_experts".split(), 4),
        "num_experts_per_tok": rng.choice((1, 2)),
        **dict.fromkeys("n_group topk_group n_shared_experts first_k_dense_replace".split(), 1),
        **dict.fromkeys("qk_nope_head_dim v_head_dim q_lora_rank kv_lora_rank block_size".split(), 8),
        "qk_rope_head_dim": 4,
        "query_pre_attn_scalar": head_dim,
        "keep_window_size": 64,
    }
    if family == "gpt_neox":
        values["rotary_pct"] = rng.choice((0.5, 1.0))
    for name in _SWITCHES:
        values[name] = rng.random() < 0.5 if name != "qk_layernorm" or family != "phi" else False
    if family not in _KEPT_ACTIVATION:
        activation = rng.choice(_ACTIVATIONS)
        values |= dict.fromkeys(("hidden_act", "hidden_activation"), activation)
    if "sliding_window" in known:
        values["sliding_window"] = rng.choice((3, 6)) if known["sliding_window"] or rng.random() < 0.5 else None
        values["use_sliding_window"] = values["sliding_window"] is not None
        values["max_window_layers"] = rng.randint(0, layers)
    values = {key: value for key, value in values.items() if key in known}
    if "layer_types" in known and known.get("layer_types"):
        kinds = sorted(set(known["layer_types"]))
        values["layer_types"] = [rng.choice(kinds) for _ in range(layers)]
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name in known:
            values[name] = rng.choice((None, 5.0))
    if family in _CLASSES:
        values["rope_parameters"] = _mrope(family, head_dim)
    elif family not in _KEPT_ROPE and rng.random() < 0.3:
        values["rope_parameters"] = {**(known.get("rope_parameters") or {}), **_rope(rng)}
    if family == "qwen3_vl_moe_text":
        values["mlp_only_layers"] = [0] if rng.random() < 0.3 else []
    return whole(**values)


def _mrope(family: str, head_dim: int) -> dict[str, Any]:
    half = head_dim // 2
    section = [half - 2 * (half // 4) if half > 2 else 1, max(half // 4, 0) if half > 2 else 1, 0]
    section[2] = half - section[0] - section[1]
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section}
    return {**found, "mrope_interleaved": True} if "qwen3" in family else found


def _rope(rng: Random) -> dict[str, Any]:
    kind = rng.choice(("linear", "yarn", "llama3"))
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind != "linear":
        found["original_max_position_embeddings"] = 32
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return found


def build(config: Any, family: str, attention: str) -> nn.Module:
    """The decoder without a head; updates are large, so that a skipped operator shows."""
    config._attn_implementation = attention
    torch.manual_seed(0)
    if family in _CLASSES:
        model = getattr(transformers, _CLASSES[family])(config)
    else:
        kind = transformers.AutoModel._model_mapping[type(config)]
        if not getattr(kind, "_supports_sdpa", False):
            config._attn_implementation = "eager"
        model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.isfinite().all():
                parameter.zero_()
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(0, 0.7 / parameter.shape[-1] ** 0.5)
    return model.eval()
