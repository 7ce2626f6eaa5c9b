"""The oracle: the slow, plain definition of skipping, run eagerly by hooks on the model's own modules.

Every operator is computed for every row, and then the visual rows of a skipped one are dropped before they reach
the residual stream. It shares no code with the compiler, so that the compiler can be checked against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile.errors import OpSkipError
from opskip_compile.schedule import Schedule

# Names of the modules whose output is added to the residual stream, the last one first: some decoders have a norm
# after the operator.
_BRANCHES = {
    "attention": ("self_attn", "attention", "attn"),
    "ffn": ("mlp", "feed_forward", "block_sparse_moe"),
}


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a transformers model, or of its text decoder.

    Raises:
        OpSkipError: the model has no list of layers.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise OpSkipError(f"oracle: {type(model).__name__} has no decoder with a list named 'layers'")
    return layers


@contextmanager
def oracle(model: nn.Module, schedule: Schedule, visual_mask: Tensor) -> Iterator[nn.Module]:
    """Run ``model`` under the definition of DESIGN section 2.

    Args:
        model: a transformers model, changed by hooks until the block ends.
        schedule: which operators to skip.
        visual_mask: bool ``(batch, sequence)`` of the prefill. A forward with another sequence length (a decode
            step) runs dense.

    Raises:
        OpSkipError: a decoder layer without a module for the operator.
        ScheduleError: the schedule does not fit the number of layers.
    """
    layers = decoder_layers(model)
    through = visual_mask.flip(1).cumsum(1).flip(1) > 0
    left_out = {"visual": visual_mask, "through_visual": through}
    handles = []
    try:
        for layer, states in zip(layers, schedule.resolve(len(layers)), strict=True):
            for kind, rows in (("attention", states.attention), ("ffn", states.ffn)):
                if rows is not None:
                    handles.append(_branch(layer, kind).register_forward_hook(_drop(left_out[rows])))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _drop(rows: Tensor) -> Any:
    def hook(module: nn.Module, args: object, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        if first.shape[:2] != rows.shape:
            return output
        kept = torch.where(rows[..., None].to(first.device), torch.zeros_like(first), first)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    return hook


def _branch(layer: nn.Module, kind: str) -> nn.Module:
    children = dict(layer.named_children())
    for name in _BRANCHES[kind]:
        if name in children:
            return children[name]
    raise OpSkipError(f"oracle: {type(layer).__name__} has no module for its {kind}, only {', '.join(children)}")
