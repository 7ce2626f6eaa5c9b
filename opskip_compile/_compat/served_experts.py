"""What vLLM 0.32 doesn't promise of its experts: on a GPU a layer of them is one opaque operation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from opskip_compile._compat import serving

ROUTED, ROUTED_AND_SHARED = "vllm::moe_forward", "vllm::moe_forward_shared"
"""They choose experts of each row and ask them; the second also asks those that all rows share."""


def asks_each_row_alone(layer: str) -> bool:
    """True if rows of this layer of experts don't know of each other: not where its router keeps something of them."""
    from vllm.model_executor.layers.fused_moe.router.zero_expert_router import ZeroExpertRouter

    module = serving.context().no_compile_layers.get(layer)
    return module is not None and not isinstance(getattr(module, "router", None), ZeroExpertRouter)


def ask(x: Tensor, logits: Tensor, shared: Tensor | None, layer: str) -> Any:
    """What the experts of ``layer`` make of each row of ``x``, or that of shared experts and theirs.

    Args:
        x: ``(rows, width)``; it may be written to.
        logits: of the router, ``(rows, experts)``.
        shared: what shared experts are given, ``(rows, width)``.
        layer: vLLM's name of it.
    """
    now = serving.context()
    before, now.is_padding = now.is_padding, None  # it has the rows of the whole step
    try:
        return now.no_compile_layers[layer]._forward_impl(x, logits, shared, None)
    finally:
        now.is_padding = before


def flops_of_row(layer: str) -> int | None:
    """Multiply-adds of one row times 2; None where nothing says it."""
    module: Any = serving.context().no_compile_layers.get(layer)
    config = getattr(module, "moe_config", None)
    if config is None:
        return None
    found = config.experts_per_token * config.hidden_dim * config.intermediate_size_per_partition
    found *= 3 if config.is_act_and_mul else 2
    shared = getattr(module, "shared_experts", None)
    for weight in () if shared is None else shared.parameters():
        if not weight.is_floating_point():
            return None
        found += weight.numel() if weight.dim() == 2 else 0
    return int(2 * found)
