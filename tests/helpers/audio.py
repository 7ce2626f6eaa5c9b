"""Families that take audio at small size, and prompts in which images and audio stand beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from opskip_compile.models.tiny import padded
from tests.helpers.families import IMAGE, VISION_END, VISION_START
from tests.helpers.shrink import AUDIO, build
from tests.helpers.support.changes import CHANGES

Parts = Sequence[int | str]
AUDIO_START, AUDIO_END = 195, 196
FRAMES = 32  # of the spectrogram of one sound


def omni_inputs(rows: int, elements: Sequence[Parts], seed: int = 0) -> dict[str, Tensor]:
    """A batch, padded on the left, of numbers of text rows, ``"image"`` and ``"audio"`` of 16 and ``rows`` rows."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Callable[[], list[int]]] = {
        "image": lambda: [VISION_START, *[IMAGE] * 16, VISION_END],
        "audio": lambda: [AUDIO_START, *[AUDIO] * rows, AUDIO_END],
    }
    ids: list[list[int]] = []
    for parts in elements:
        ids.append([])
        for part in parts:
            text = torch.randint(3, 180, (part,), generator=generator).tolist() if isinstance(part, int) else None
            ids[-1] += made[str(part)]() if text is None else text
    found = padded(ids)
    images, sounds = (sum(list(parts).count(word) for parts in elements) for word in ("image", "audio"))
    if images:
        found["pixel_values"] = torch.randn(64 * images, 96, generator=generator)
        found["image_grid_thw"] = torch.tensor([[1, 8, 8]] * images)
    if sounds:
        found["input_features"] = torch.randn(sounds, 128, FRAMES, generator=generator)
        found["feature_attention_mask"] = torch.ones(sounds, FRAMES, dtype=torch.long)
    return found


def build_family(name: str, layers: int = 4) -> nn.Module:
    """The model with the same random weights every time."""
    return build(name, layers, CHANGES.get(name))
