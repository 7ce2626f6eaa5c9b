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
    spread. Two fine-tuned models differ in it unless they differ in other values alone. The dtype that the config names
    is that of a file, not of the model, and is left out."""
    sha = hashlib.sha256()
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        sha.update(json.dumps(_what_matters(config.to_dict()), sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        sha.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        flat = value.detach().flatten()
        if flat.numel():
            picked = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].cpu().contiguous()
            sha.update(picked.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def _what_matters(fields: Any) -> Any:
    """The fields of a config, and of those inside of it, without where, by what and in which dtype it was saved."""
    if not isinstance(fields, dict):
        return fields
    saved = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    return {name: _what_matters(value) for name, value in fields.items() if name not in saved}


def versions() -> dict[str, Any]:
    """Of what measurements depend on."""
    return {
        "opskip": metadata.version("opskip-compile"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
