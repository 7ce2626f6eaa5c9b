"""Scenes of flat shapes: each in a grid cell of its own, so that no two touch and left, right, above and below are
never in doubt.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.vqa.base import CANVAS
from benchmarks.vqa.draw import COLORS, SHAPES, canvas, pixels, shape, tint

Cell = tuple[int, int]  # column, row
BIG, SMALL = (25, 29), (12, 15)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a question can say of an object."""

    shape: str
    color: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


KINDS = tuple(Kind(shape, color) for shape in SHAPES for color in COLORS)


@dataclass(frozen=True, slots=True)
class Item:
    """An object of a scene; `size` is the side of its bounding box in pixels."""

    kind: Kind
    size: int
    cell: Cell


def cells(side: int) -> list[Cell]:
    """All cells of a square grid, row by row."""
    return [(column, row) for row in range(side) for column in range(side)]


def paint(items: Iterable[Item], side: int, rng: random.Random, stray: int = 8) -> NDArray[np.uint8]:
    """The scene's pixels. An item lies at most `stray` pixels off the centre of its cell, and inside of it."""
    image, pen = canvas(rng)
    width = CANVAS // side
    for item in items:
        room = min(stray, (width - item.size - 2) // 2)
        column, row = item.cell
        x = column * width + width // 2 + rng.randint(-room, room)
        y = row * width + width // 2 + rng.randint(-room, room)
        shape(pen, item.kind.shape, (x, y), item.size, tint(item.kind.color, rng))
    return pixels(image)


def scatter(
    kinds: Sequence[Kind], side: int, rng: random.Random, sizes: tuple[int, int] = (16, 26)
) -> NDArray[np.uint8]:
    """A scene of `kinds` in random cells and sizes."""
    places = rng.sample(cells(side), len(kinds))
    return paint([Item(kind, rng.randint(*sizes), cell) for kind, cell in zip(kinds, places, strict=True)], side, rng)


def other(pool: Iterable[str], *taken: str, rng: random.Random) -> str:
    """A random name of `pool` that is none of `taken`."""
    return rng.choice([name for name in pool if name not in taken])


def plural(name: str) -> str:
    """More than one of a shape."""
    return f"{name}es" if name.endswith("s") else f"{name}s"
