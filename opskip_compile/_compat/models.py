"""Private names of transformers."""

from __future__ import annotations

from typing import Any

DEEPSTACK_METHOD = "_deepstack_process"
"""The method of a Qwen3-VL decoder that adds image features inside the layer loop."""

DEEPSTACK_PARAMETERS = ("self", "hidden_states", "visual_pos_masks", "visual_embeds")


def attention_implementation(config: Any) -> str:
    """The name under which a model looks its attention up, as ``set_attn_implementation`` set it."""
    return str(config._attn_implementation)
