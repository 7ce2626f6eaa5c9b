"""What stands around the forward of a layer, and ends Dynamo's graph: hooks of accelerate, activation checkpointing.

Compiled code goes inside of it, layer by layer: accelerate moves the inputs of a layer to its device, or loads its
weights, and calls compiled code then; a checkpoint calls compiled code, and calls it again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import nn

from opskip_compile import _compat


def are_wrapped(layers: Sequence[nn.Module]) -> bool:
    """True if something stands around the forward of a layer, so that the decoder is no one graph at present.

    Looks at every layer, and inside of the first and the last one: weights are off-loaded from one end of the model on.
    """
    ends = [*layers[:1], *layers[-1:]]
    wrapped = any(_compat.has_hook(layer) or _compat.is_checkpointed(layer) for layer in layers)
    return wrapped or any(_compat.hooked_inside(layer) for layer in ends)


def inside(layer: nn.Module, compiled: Callable[..., Any], *args: Any) -> Any:
    """Call compiled code of ``layer`` with its weights where it needs them, in a checkpoint if it is to be in one."""
    checkpoint, hooked = _compat.checkpointing(layer), _compat.hooked_inside(layer)
    loads = bool(hooked) and _compat.only_load_weights(hooked)

    def call(*args: Any) -> Any:
        plain = nullcontext() if checkpoint is None else _compat.without_checkpointing(layer)
        with _compat.weights_loaded(hooked) if loads else nullcontext(), plain:
            return compiled(*args)

    return call(*args) if checkpoint is None else checkpoint(call, *args)
