"""Which model a measurement was made with: a digest that needs no pass over all of its weights."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from typing import Any

import torch
import transformers
from torch import nn

SAMPLED = 4096


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the config, of name, shape and dtype of every parameter, and of at most 4,096 values of each, evenly
    spread. Two fine-tuned models differ in it unless they differ in other values alone."""
    sha = hashlib.sha256()
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        fields = config.to_dict()
        fields.pop("_name_or_path", None)
        fields.pop("transformers_version", None)
        sha.update(json.dumps(fields, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        sha.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        flat = value.detach().flatten()
        if flat.numel():
            picked = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].cpu().contiguous()
            sha.update(picked.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def versions() -> dict[str, Any]:
    """Of what measurements depend on."""
    return {
        "opskip": metadata.version("opskip-compile"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
