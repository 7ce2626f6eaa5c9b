"""What stands around the forward of a layer, and ends Dynamo's graph: hooks of accelerate, FSDP, checkpointing.

Compiled code goes inside of it, layer by layer: accelerate moves the inputs of a layer to its device, or loads its
weights, and calls compiled code then; FSDP gathers its weights before, and frees them after; a checkpoint calls
compiled code, and calls it again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from opskip_compile import _compat
from opskip_compile.attachment.decoder import layers_of


class Surroundings:
    """What stands around the forwards of some layers; looked at in every forward, so its cost matters.

    Args:
        layers: of a decoder.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers, self._hooks = layers, _compat.HookWatch(layers)

    def part_the_decoder(self) -> bool:
        """True if something stands around a layer, or around a part of one: the decoder is no one graph at present."""
        around = (_compat.is_checkpointed, _compat.is_fully_sharded)
        return self._hooks.sees_any() or any(is_it(layer) for is_it in around for layer in self.layers)


PARTED = (
    "hooks of accelerate or FSDP part the decoder, whose weights are off-loaded or on several devices: explain needs "
    "it as one graph. compile goes layer by layer inside of the hooks and skips; its reports say what. To explain the "
    "whole decoder, build the model without a device map, on the meta device if it is large"
)


@contextmanager
def lifted(decoder: nn.Module | None) -> Iterator[None]:
    """Take off for a while what parts the decoder, so that it is one graph: for a capture that runs none of it.

    Hooks stay where they load weights, or where weights are on several devices: Dynamo captures no such decoder.
    """
    blocks = [] if decoder is None else [part for part in decoder.children() if not isinstance(part, nn.Embedding)]
    devices = {weight.device for block in blocks for weight in block.parameters()}
    free = len(devices) == 1 and "meta" not in {device.type for device in devices}
    parts = [part for block in blocks for part in block.modules()] if free else []
    layers = [] if decoder is None else layers_of(decoder)
    with _compat.without_hooks(parts), _compat.uncheckpointed(layers):
        yield


def inside(layer: nn.Module, compiled: Callable[..., Any], *args: Any) -> Any:
    """Call compiled code of ``layer`` with its weights where it needs them, in a checkpoint if it is to be in one."""
    checkpoint, hooked = _compat.checkpointing(layer), _compat.hooked_inside(layer)
    loads = bool(hooked) and _compat.only_load_weights(hooked)

    def call(*args: Any) -> Any:
        plain = nullcontext() if checkpoint is None else _compat.without_checkpointing(layer)
        with _compat.weights_loaded(hooked) if loads else nullcontext(), plain:
            return compiled(*args)

    return call(*args) if checkpoint is None else checkpoint(call, *args)
