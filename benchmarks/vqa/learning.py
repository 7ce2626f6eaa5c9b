"""What a training step computes: answers, cell labels, their losses, and the accuracy of a model on samples.

Small linear heads read the labels of every visual row after chosen decoder layers. They teach the model to see and
are no part of it. Two attention heads of one layer are told where to look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.vqa.architectures import Kit
from benchmarks.vqa.facts import HEADS
from benchmarks.vqa.packing import Packed, Sample, pack

NOTHING = 0.1  # weight of a cell that has nothing of the kind: most cells are background


class Heads(nn.Module):
    """One norm and one linear map to all labels per tap; tap 0 is the decoder's input, tap n follows its layer n."""

    def __init__(self, width: int, taps: Sequence[int]) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.norms = nn.ModuleList([nn.RMSNorm(width) for _ in self.taps])
        self.maps = nn.ModuleList([nn.Linear(width, sum(HEADS.values())) for _ in self.taps])

    def forward(self, states: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss at the visual rows: states `(rows, width)` for each tap, labels `(rows, heads)`."""
        total = torch.zeros((), device=labels.device)
        for state, norm, to_labels in zip(states, self.norms, self.maps, strict=True):
            logits = to_labels(norm(state)).split(list(HEADS.values()), dim=1)
            for head, found in enumerate(logits):
                wanted = labels[:, head]
                weight = torch.where(wanted > 0, 1.0, NOTHING) * (wanted >= 0)
                losses = cross_entropy(found, wanted, ignore_index=-1, reduction="none")
                total = total + (losses * weight).sum() / weight.sum().clamp(min=1)
        return total / len(self.taps)


@contextmanager
def tapped(layers: nn.ModuleList, taps: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collects the residual stream `(batch, rows, width)` at the taps of the forwards inside."""
    states: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        states.append(args[0])

    handles = [layers[tap].register_forward_pre_hook(before) for tap in sorted(taps)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def attended(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the attention weights `(batch, heads, rows, columns)` of an eager layer in the forwards inside."""
    weights: list[Tensor] = []
    handle = layer.self_attn.register_forward_hook(lambda _, __, output: weights.append(output[1]))
    try:
        yield weights
    finally:
        handle.remove()


@contextmanager
def products(decoder: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Matrix products of the decoder in `dtype`; the tower's attention and convolution are faster in float32."""
    device = next(decoder.parameters()).device.type
    cast = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)

    def enter(*_: Any) -> None:
        cast.__enter__()

    def leave(*_: Any) -> None:
        cast.__exit__(None, None, None)

    handles = [decoder.register_forward_pre_hook(enter), decoder.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def losses(
    model: Any, heads: Heads, packed: Packed, kit: Kit, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], Tensor]:
    """Losses of the answers, the cell labels and the points, and whether each answer token is right."""
    decoder = model.get_decoder()
    pointing = decoder.layers[kit.settings["pointing_layer"]]
    with tapped(decoder.layers, heads.taps) as states, attended(pointing) as weights, products(decoder, dtype):
        hidden = model.model(**packed.inputs, use_cache=False).last_hidden_state
    element, row, _ = packed.rows.unbind(1)
    logits = model.lm_head(hidden[element, row])
    answers = (cross_entropy(logits, packed.targets, reduction="none") * packed.weights).sum() / packed.weights.sum()
    visual = packed.inputs["input_ids"] == kit.ids(kit.family.image)[0]
    cells = heads([state[visual] for state in states], packed.labels)
    element, which, row, column = packed.points.unbind(1)
    looked = weights[0].float()[element, which * (weights[0].shape[1] // 2), row, column]
    points = -(looked.clamp(min=1e-8).log() * packed.shares).sum() / packed.shares.sum().clamp(min=1)
    return {"answers": answers, "cells": cells, "points": points}, logits.argmax(1) == packed.targets


def first_right(packed: Packed, right: Tensor) -> list[bool]:
    """For each element, whether all tokens of its first answer are right: then greedy decoding gives that answer."""
    found = [True] * len(packed.tasks)
    for (element, _, number), each in zip(packed.rows.tolist(), right.tolist(), strict=True):
        if number == 0:
            found[element] &= each
    return found


@torch.no_grad()
def accuracies(
    forward: Callable[[Packed], Tensor], samples: Sequence[Sample], kit: Kit, size: int = 20
) -> dict[str, float]:
    """Exact matches by task, each question in a prompt of its own; `forward` gives logits at the answer rows.

    The tokens of the right answer are given, which changes nothing: the first wrong token makes it wrong either way.
    """
    groups: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.task, len(sample.pictures)].append(sample)
    results: dict[str, list[bool]] = defaultdict(list)
    for (task, images), group in groups.items():
        for start in range(0, len(group), size):
            part = group[start : start + size]
            longest = max(len(prompt) + len(answer) for sample in part for prompt, answer, _ in sample.asked)
            packed = pack(part, kit, images * len(kit.block()) + longest)
            results[task] += first_right(packed, forward(packed).argmax(1).cpu() == packed.targets)
    return {task: sum(found) / len(found) for task, found in results.items()}


def answer_logits(model: Any, packed: Packed) -> Tensor:
    """Logits of the rows that predict answer tokens, `(tokens, vocabulary)`, on the model's device."""
    packed = packed.to(model.device)
    hidden = model.model(**packed.inputs, use_cache=False).last_hidden_state
    element, row, _ = packed.rows.unbind(1)
    logits: Tensor = model.lm_head(hidden[element, row])
    return logits
