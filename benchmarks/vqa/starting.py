"""A training run that begins with the weights of an exported model: the same model, a deeper one, another architecture.

A model with n more layers begins with the last n split: each is there twice, and both add half of what it added to the
residual stream. (Layers that begin with zeros as their outputs, as in block expansion, arXiv:2401.02415, stay idle in a
model that is nearly trained.)
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from benchmarks.vqa.architectures import Kit
from benchmarks.vqa.exporting import HEADS_FILE


def load_weights(model: Any, heads: nn.Module, kit: Kit, folder: Path) -> None:
    """Give `model` and `heads` the weights of an exported folder, in their own precision.

    A model of another architecture keeps its own tower and gets the decoder, and the embeddings and output rows of the
    tokens that both vocabularies have; biases that only it has begin as zeros. Raises `RuntimeError` where a weight is
    missing or has another shape, `ValueError` for a model that is shallower or more than twice as deep.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    found = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32)
    layers, depth = model.get_decoder().layers, len(found.get_decoder().layers)
    if not depth <= len(layers) <= 2 * depth:
        raise ValueError(
            f"{folder} has {depth} decoder layers, the model {len(layers)}; expected as many to twice as many"
        )
    _split_last(found, len(layers) - depth)
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
    heads.load_state_dict(load_file(folder / HEADS_FILE))


def _split_last(model: Any, count: int) -> None:
    """Replace each of the last `count` decoder layers by two that add half of its updates each."""
    layers = model.get_decoder().layers
    for place in range(len(layers) - count, len(layers) + count, 2):
        with torch.no_grad():
            for projection in (layers[place].self_attn.o_proj, layers[place].mlp.down_proj):
                projection.weight /= 2
        layers.insert(place + 1, copy.deepcopy(layers[place]))


def _copy(source: nn.Module, target: nn.Module) -> None:
    """All weights of `source`, which has to have all that `target` has but for biases."""
    found = target.load_state_dict(source.state_dict(), strict=False)
    missing = [name for name in found.missing_keys if not name.endswith(".bias")]
    if odd := [*missing, *found.unexpected_keys]:
        raise RuntimeError(f"weights that only one of the two models has: {', '.join(odd)}")
