"""Private names of transformers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DEEPSTACK_METHOD = "_deepstack_process"
"""The method of a Qwen3-VL decoder that adds image features inside the layer loop."""

DEEPSTACK_PARAMETERS = ("self", "hidden_states", "visual_pos_masks", "visual_embeds")


def attention_implementation(config: Any) -> str:
    """The name under which a model looks its attention up, as ``set_attn_implementation`` set it."""
    return str(config._attn_implementation)


@contextmanager
def traceable_collector() -> Iterator[None]:
    """Let Dynamo trace the hooks by which transformers collects hidden states and attentions.

    They ask a context variable whether anything is collected, which ends the graph in the middle of a layer that is
    compiled alone: around a compiled decoder transformers itself puts the collection into a global for that time.
    """
    capturing = sys.modules.get("transformers.utils.output_capturing")
    collector = getattr(capturing, "_active_collector", None)
    if collector is None or collector.compiling:
        yield
        return
    collector.global_var, collector.compiling = collector.context_var.get(), True
    try:
        yield
    finally:
        collector.global_var, collector.compiling = None, False
