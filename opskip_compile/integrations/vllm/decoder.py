"""The decoder of a model of vLLM: its layers, its attentions, and the linear layers that queries come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from opskip_compile._compat import serving
from opskip_compile.errors import OptionError


@dataclass(frozen=True)
class ServedDecoder:
    """What is skipped in.

    Attributes:
        module: what vLLM calls with the embedded rows of a step.
        layers: the decoder's, in order.
        attentions: vLLM's name of each attention layer, with its module; by layer.
    """

    module: nn.Module
    layers: nn.ModuleList
    attentions: tuple[dict[str, nn.Module], ...]

    @classmethod
    def of(cls, model: nn.Module) -> ServedDecoder:
        """The decoder of a multimodal model.

        Raises:
            OptionError: there is no such part, or there are several.
        """
        find: Any = getattr(model, "get_language_model", None)
        if find is None:
            raise OptionError(f"opskip can't skip in {type(model).__name__}: it has no language model of its own")
        owners = [
            (module, child)
            for module in find().modules()
            for name, child in module.named_children()
            if name == "layers" and isinstance(child, nn.ModuleList)
        ]
        if len(owners) != 1:
            text = f"it has {len(owners)} lists of decoder layers"
            raise OptionError(f"opskip can't skip in {type(model).__name__}: {text}")
        ((module, layers),) = owners
        return cls(module, layers, tuple(dict(_attentions(layer)) for layer in layers))

    def projections(self, layer: int) -> list[nn.Module]:
        """The linear layers of one layer that give queries, keys and values at once."""
        return [child for child in self.layers[layer].modules() if serving.is_projection(child)]


def _attentions(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    """An attention layer of vLLM has a name, and a kernel behind it."""
    found = [module for module in layer.modules() if hasattr(module, "attn_backend") and hasattr(module, "layer_name")]
    return [(str(module.layer_name), module) for module in found]
