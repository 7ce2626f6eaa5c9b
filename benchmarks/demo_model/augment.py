"""Fresh training images cut from the training images: moved, mirrored, shrunk, re-coloured.

Each image is one flat shape on a flat background, so its coverage mask can be read off the pixels exactly and
pasted again with another colour, place and background. Only images of the training split are used.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo_model.templates import COLORS, Label

SIZE = 64


@dataclass(frozen=True, slots=True)
class Sprite:
    """A shape's coverage mask (float32 in 0..1, cropped to the shape) with the picture it came from."""

    mask: NDArray[np.float32]
    picture: NDArray[np.uint8]
    label: Label


def cut(picture: NDArray[np.uint8], label: Label) -> Sprite:
    """The sprite of a `(64, 64, 3)` picture: how far each pixel lies between background and shape colour."""
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    background = colors[counts.argmax()].astype(np.float32)
    step = np.array(COLORS[label.color], dtype=np.float32) - background
    mask = np.clip((picture - background) @ step / (step @ step), 0, 1).astype(np.float32)
    mask[mask < 0.04] = 0
    rows, columns = np.flatnonzero(mask.max(1)), np.flatnonzero(mask.max(0))
    return Sprite(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], picture, label)


def vary(sprite: Sprite, rng: random.Random, original: float = 0.15) -> tuple[NDArray[np.uint8], Label]:
    """A new picture of the sprite and its label; with probability `original` the picture it came from."""
    if rng.random() < original:
        return sprite.picture, sprite.label
    mask = sprite.mask[:, ::-1] if rng.random() < 0.5 else sprite.mask
    if rng.random() < 0.6:
        mask = _resize(mask, sprite.label.shape, rng)
    color = rng.choice(list(COLORS))
    background = np.array([rng.randint(230, 255) for _ in range(3)], dtype=np.float32)
    height, width = mask.shape
    top, left = rng.randint(0, SIZE - height), rng.randint(0, SIZE - width)
    coverage = np.zeros((SIZE, SIZE, 1), dtype=np.float32)
    coverage[top : top + height, left : left + width, 0] = mask
    picture = background + coverage * (np.array(COLORS[color], dtype=np.float32) - background)
    return picture.round().astype(np.uint8), Label(sprite.label.shape, color)


def _resize(mask: NDArray[np.float32], shape: str, rng: random.Random) -> NDArray[np.float32]:
    height, width = mask.shape
    scale = rng.uniform(0.5, 1.1)
    stretch = rng.uniform(0.6, 1.0) if shape == "rectangle" else 1.0
    if rng.random() < 0.5:
        sides = (height * scale * stretch, width * scale)
    else:
        sides = (height * scale, width * scale * stretch)
    new_height, new_width = (min(SIZE, max(9, round(side))) for side in sides)
    resized = Image.fromarray(mask).resize((new_width, new_height), Image.Resampling.BOX)
    return np.clip(np.asarray(resized, dtype=np.float32), 0, 1)
