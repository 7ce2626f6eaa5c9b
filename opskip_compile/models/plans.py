"""Plans of tensor parallelism for models of transformers that bring none for their decoder layers, or none that loads.

In transformers 5.17 to 5.24 the plan of dense Qwen3-VL names its last linear layer, and its embedding at most. With
``tp_plan="auto"`` every process then computes the whole decoder. Its layers are written as those of Qwen3, so the plan
of that model fits.

That of Qwen3-VL-MoE splits the weights of its experts, which the checkpoint holds transposed. Up to transformers 5.23
they are turned, or not, by comparing the shape of a process's part with the whole shape, so that loading fails. Here
the experts stay whole on every process; attention is split.
"""

from __future__ import annotations

from typing import Any

from opskip_compile.errors import OpSkipError

_LAYER = {
    "self_attn.q_proj": "colwise",
    "self_attn.k_proj": "colwise",
    "self_attn.v_proj": "colwise",
    "self_attn.q_norm": "replicated_with_grad_allreduce",
    "self_attn.k_norm": "replicated_with_grad_allreduce",
    "self_attn.o_proj": "rowwise",
    "mlp.gate_proj": "colwise",
    "mlp.up_proj": "colwise",
    "mlp.down_proj": "rowwise",
}
_EXPERTS = dict.fromkeys(("mlp.experts", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"), "replicate")
_PLANS = {
    model: {f"model.language_model.layers.*.{name}": style for name, style in layer.items()}
    for model, layer in (("qwen3_vl", _LAYER), ("qwen3_vl_moe", _EXPERTS))
}


def tensor_parallel_plan(config: Any) -> dict[str, str] | str:
    """The ``tp_plan`` for ``transformers.distributed.DistributedConfig`` that splits the decoder layers of a model.

    Args:
        config: of the whole model, a ``PreTrainedConfig``.

    Returns:
        ``"auto"`` where transformers has such a plan itself, and can load by it; else rules that are added to its own.

    Raises:
        OpSkipError: neither transformers nor this package has a plan for the model.
    """
    if config.model_type in _PLANS:
        return dict(_PLANS[config.model_type])
    own = getattr(config.get_text_config(), "base_model_tp_plan", None) or {}
    if any(name.startswith("layers.") for name in own):
        return "auto"
    raise OpSkipError(f"tensor_parallel_plan: no plan for the decoder layers of {config.model_type!r}")
