"""Where the text decoder of a model is, and what stands around it."""

from __future__ import annotations

from torch import nn

from opskip_compile.errors import OpSkipError
from opskip_compile.models.rows import visual_tokens
from opskip_compile.schedule.modalities import VISUAL


def decoder_of(model: nn.Module, modalities: tuple[str, ...] = VISUAL) -> nn.Module | None:
    """The text decoder, if the model's config names the tokens of the rows of these modalities."""
    if not visual_tokens(model, modalities):
        return None
    configs = (getattr(model, "config", None), getattr(getattr(model, "config", None), "text_config", None))
    if any(getattr(config, "is_encoder_decoder", False) for config in configs):
        return None  # the rows are in the encoder: the whole model is compiled, and the report says so
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    return decoder if isinstance(decoder, nn.Module) and decoder is not model else None


def layers_of(decoder: nn.Module) -> list[nn.Module]:
    """The layers of a text decoder of transformers; empty if it has no list of them."""
    layers = getattr(decoder, "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def modules_around(model: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """The modules around the decoder, the outermost first: one of them gets the token ids and calls the decoder."""
    for name, module in model.named_modules():
        if module is decoder:
            parts = name.split(".")[:-1]
            return [model.get_submodule(".".join(parts[:i])) for i in range(len(parts) + 1)]
    raise OpSkipError(f"compile: the decoder of {type(model).__name__} is not one of its submodules")
