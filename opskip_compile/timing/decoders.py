"""Decoders with the sizes of real checkpoints and random weights, cut to a few layers so that they fit the machine.

Sizes are those of the published configs (``config.json`` of each checkpoint on the Hugging Face hub).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn

from opskip_compile.errors import OptionError
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.rules import LayerStates
from opskip_compile.schedule.schedule import Schedule


@dataclass(frozen=True)
class Decoder:
    """A decoder: its class (``<kind>Config`` and ``<kind>Model`` of transformers) and its sizes at full depth."""

    title: str
    kind: str
    geometry: Geometry

    def cut(self, layers: int) -> Decoder:
        """The same with fewer layers.

        Raises:
            OptionError: it does not have so many.
        """
        if not 1 <= layers <= self.geometry.num_layers:
            raise OptionError(f"layers: {self.title} has 1 to {self.geometry.num_layers}, got {layers}")
        return replace(self, geometry=replace(self.geometry, num_layers=layers))

    def build(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """The decoder with the same random weights every time, of `dtype`, on `device`."""
        size = self.geometry
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.kind}Config")(
            vocab_size=256,  # prompts are given as embeddings
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=size.num_kv_heads,
            head_dim=size.head_dim,
            max_position_embeddings=32768,
            pad_token_id=None,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e6,
                **_ROTARY.get(self.kind, _plain)(size.head_dim),
            },
        )
        with torch.device(device):
            model: nn.Module = getattr(transformers, f"{self.kind}Model")(config)
        return model.eval().to(dtype)


def _plain(head_dim: int) -> dict[str, Any]:
    return {}


def _multimodal(head_dim: int) -> dict[str, Any]:
    """Rotary frequencies over time, height and width, in the shares of Qwen3-VL's (24, 20, 20) of 64."""
    side = head_dim // 2 * 5 // 16
    return {"mrope_section": [head_dim // 2 - 2 * side, side, side]}


_ROTARY: Mapping[str, Callable[[int], dict[str, Any]]] = MappingProxyType(
    {"Qwen3VLText": _multimodal, "Qwen2_5_VLText": _multimodal}
)

DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "small": Decoder("Qwen3-VL at width 1024", "Qwen3VLText", Geometry(36, 1024, 3072, 16, 8, 64)),
        "qwen3-vl-2b": Decoder("Qwen3-VL-2B", "Qwen3VLText", Geometry(28, 2048, 6144, 16, 8, 128)),
        "qwen3-vl-4b": Decoder("Qwen3-VL-4B", "Qwen3VLText", Geometry(36, 2560, 9728, 32, 8, 128)),
        "qwen3-vl-8b": Decoder("Qwen3-VL-8B", "Qwen3VLText", Geometry(36, 4096, 12288, 32, 8, 128)),
        "qwen2.5-vl-7b": Decoder("Qwen2.5-VL-7B", "Qwen2_5_VLText", Geometry(28, 3584, 18944, 28, 4, 128)),
        "llava-1.5-7b": Decoder("LLaVA-1.5-7B", "Llama", Geometry(32, 4096, 11008, 32, 32, 128)),
        "internvl3-8b": Decoder("InternVL3-8B", "Qwen2", Geometry(28, 3584, 18944, 28, 4, 128)),
    }
)


def thinned(schedule: Schedule, layers: int) -> Schedule:
    """A schedule that was made for some number of layers, for a decoder cut to ``layers``: its states at layers that
    are evenly spread. One that fits any depth comes back as it is."""
    full = schedule.num_layers
    if full is None:
        return schedule
    states = schedule.resolve(full)
    chosen = (states[(2 * i + 1) * full // (2 * layers)] for i in range(layers))
    return Schedule.from_spec(" ".join(filter(None, map(_rule, chosen, range(layers)))) or "none")


def _rule(states: LayerStates, layer: int) -> str:
    if states.attention and states.ffn and states.attention != states.ffn:
        return f"transform{states.attention.suffix}:{layer} attend{states.ffn.suffix}:{layer}"
    left_out = states.attention or states.ffn
    return f"{states.state}{left_out.suffix}:{layer}" if left_out else ""
