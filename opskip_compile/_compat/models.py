"""Private names of transformers, and names that it has changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

DEEPSTACK_METHOD = "_deepstack_process"
"""The method of a Qwen3-VL decoder that adds image features inside the layer loop."""

DEEPSTACK_PARAMETERS = ("self", "hidden_states", "visual_pos_masks", "visual_embeds")

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Names of the argument that takes keys and values: transformers 5.24 renamed it, and takes the old name until 5.40."""


def cache_argument(forward: Callable[..., Any]) -> str:
    """The name by which ``forward``, of a model or of a layer, takes keys and values."""
    parameters = inspect.signature(forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), CACHE_ARGUMENTS[-1])


def attention_implementation(config: Any) -> str:
    """The name under which a model looks its attention up, as ``set_attn_implementation`` set it."""
    return str(config._attn_implementation)
