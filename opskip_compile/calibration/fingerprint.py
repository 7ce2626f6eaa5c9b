"""Which model a measurement was made with: a digest that needs no pass over all of its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import transformers
from torch import nn

SAMPLED = 4096


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the config, of name, shape and dtype of every parameter, and of at most 4,096 values of each, evenly
    spread. Two fine-tuned models differ in it unless they differ in other values alone."""
    found = hashlib.sha256()
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        fields = config.to_dict()
        fields.pop("_name_or_path", None)
        fields.pop("transformers_version", None)
        found.update(json.dumps(fields, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        flat = value.detach().flatten()
        if flat.numel():
            picked = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].cpu().contiguous()
            found.update(picked.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def versions() -> dict[str, Any]:
    """Of what measurements depend on."""
    from opskip_compile import __version__

    return {"opskip": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
