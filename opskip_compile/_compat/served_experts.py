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
    """Multiply-adds of one row times 2, those of the router and of shared experts too; None where nothing says it."""
    module: Any = serving.context().no_compile_layers.get(layer)
    config = getattr(module, "moe_config", None)
    if config is None:
        return None
    found = config.experts_per_token * config.hidden_dim * config.intermediate_size_per_partition
    found *= 3 if config.is_act_and_mul else 2
    for part in ("gate", "shared_experts", "shared_expert_gate"):  # asked in the same operation
        inside = getattr(module, part, None)
        found += sum(_weights(linear) for linear in (() if inside is None else inside.modules()))
    return int(2 * found)


def _weights(linear: Any) -> int:
    """How many a linear layer of vLLM has on this rank, packed or not; 0 for other modules."""
    if not hasattr(linear, "output_size"):
        return 0
    sizes = ("input_size_per_partition", "input_size"), ("output_size_per_partition", "output_size")
    taken, given = (getattr(linear, own, getattr(linear, whole)) for own, whole in sizes)
    return int(taken * given)
