"""A training run that begins with the weights of an exported model: the same model, a deeper one, another architecture.

Layers beyond those of the folder are added at the end and start with zeros as the projections that they write to the
residual stream with, so the deeper model computes at first what the other did (block expansion: Wu et al. 2024,
arXiv:2401.02415).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from vqa.architectures import Kit
from vqa.exporting import HEADS_FILE


def load_weights(model: Any, heads: nn.Module, kit: Kit, folder: Path) -> None:
    """Give `model` and `heads` the weights of an exported folder, in their own precision.

    A model of another architecture keeps its own tower and gets the decoder, and the embeddings and output rows of the
    tokens that both vocabularies have. Raises `RuntimeError` where a shape differs, `ValueError` for a shallower model.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    found = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32)
    layers, depth = model.get_decoder().layers, len(found.get_decoder().layers)
    if len(layers) < depth:
        raise ValueError(f"{folder} has {depth} decoder layers, the model {len(layers)}")
    if type(found) is type(model):
        _copy(found, model)
    else:
        _copy(found.get_decoder().layers, layers)
        _copy(found.get_decoder().norm, model.get_decoder().norm)
        theirs, ours = transformers.AutoTokenizer.from_pretrained(folder).get_vocab(), kit.tokenizer.get_vocab()
        shared = sorted(theirs.keys() & ours.keys())
        source, target = ([vocabulary[token] for token in shared] for vocabulary in (theirs, ours))
        for name in ("get_input_embeddings", "get_output_embeddings"):
            with torch.no_grad():
                getattr(model, name)().weight[target] = getattr(found, name)().weight[source]
    for layer in layers[depth:]:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    heads.load_state_dict(load_file(folder / HEADS_FILE))


def _copy(source: nn.Module, target: nn.Module) -> None:
    """All weights of `source`; those that only `target` has (deeper layers, biases of zero) stay as they are."""
    if unexpected := target.load_state_dict(source.state_dict(), strict=False).unexpected_keys:
        raise RuntimeError(f"weights without a place in the model: {', '.join(unexpected)}")
