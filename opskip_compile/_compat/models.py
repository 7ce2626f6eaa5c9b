"""Private names of transformers, and names that it has changed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_GENERATION = "transformers.generation.utils"
PIXELS = frozenset({"pixel_values", "pixel_values_videos", "images", "image"})
"""Names of the arguments by which a module takes pictures; it gets None for them with text, and in decode steps."""

DEEPSTACK_METHOD = "_deepstack_process"
"""The method of a Qwen3-VL decoder that adds image features inside the layer loop."""

DEEPSTACK_PARAMETERS = ("self", "hidden_states", "visual_pos_masks", "visual_embeds")

ENCODED_PICTURES = "mm_encoder_outputs"
"""What ``generate`` hands over instead of pixels since transformers 5.23, where it encodes the pictures itself."""

EXPANDING_METHOD = "_merge_input_ids_with_audio_features"
"""The method by which Qwen2-Audio makes as many rows of one audio token as it has features."""

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Names of the argument that takes keys and values: transformers 5.24 renamed it, and takes the old name until 5.40."""


def cache_argument(forward: Callable[..., Any]) -> str:
    """The name by which ``forward``, of a model or of a layer, takes keys and values."""
    parameters = inspect.signature(forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), CACHE_ARGUMENTS[-1])


def expands_tokens(module: nn.Module, mask: Tensor) -> bool:
    """True if ``module`` makes many rows of one token in this forward, so that ``mask`` is not that of its decoder.

    Qwen2-Audio does so where no two audio tokens of a batch stand side by side.

    Args:
        mask: bool ``(batch, sequence)``, where audio tokens stand.
    """
    return hasattr(module, EXPANDING_METHOD) and not bool((mask[:, :-1] & mask[:, 1:]).any())


def attention_implementation(config: Any) -> str:
    """The name under which a model looks its attention up, as ``set_attn_implementation`` set it; empty without."""
    return str(getattr(config, "_attn_implementation", None) or "")


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


def generating_with(backends: Sequence[object]) -> nn.Module | None:
    """The model whose `generate`, on this thread's stack, compiles decode steps with one of ``backends``, if any does.

    None if the model's own call is compiled, or its decoder's forward: then prompts are compiled, too.
    """
    frame = sys._getframe(1)
    while frame is not None:
        model = frame.f_locals.get("self") if frame.f_globals.get("__name__") == _GENERATION else None
        if isinstance(model, nn.Module):
            config = vars(model).get("_last_compile_config")
            compiled = model._compiled_call_impl is not None or "_opskip_compiled" in vars(model)
            return model if getattr(config, "backend", None) in backends and not compiled else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def modules_on_stack() -> Iterator[nn.Module]:
    """The modules on this thread's stack, the innermost first: that of the frame which Dynamo compiles, and those whose
    forwards have led to it."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        compiled = getattr(owner, "local_scope", None)  # of Dynamo's own OutputGraph: names of the frame it compiles
        for value in compiled.values() if isinstance(compiled, dict) else (owner,):
            if isinstance(value, nn.Module):
                yield getattr(value, "_orig_mod", value)
        frame = frame.f_back  # type: ignore[assignment]


def caller_has_pixels() -> bool:
    """True if a module on this thread's stack was called with pictures: what runs now is a part of its forward."""
    frame = sys._getframe(1)
    while frame is not None:
        if not PIXELS.isdisjoint(frame.f_code.co_varnames):
            known = frame.f_locals
            if isinstance(known.get("self"), nn.Module) and any(isinstance(known.get(n), Tensor) for n in PIXELS):
                return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
