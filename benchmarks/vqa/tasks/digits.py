"""Handwritten digits: scikit-learn's scans, enlarged and placed in the quarters of the canvas.

The scans are dealt out to the three splits within each class, so a test digit was written by nobody's training
stroke. The digit asked for is drawn first, and the others on the canvas differ from it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.vqa.base import CANVAS, Example, Split, Task, fill, generator
from benchmarks.vqa.draw import INKS, Color, canvas, note, pixels, tint

NAME = "digits"
DIGITS = tuple("0123456789")
PLACES = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
BY_PLACE = "what digit is at the {place}?"
BY_COLOR = "what is the {color} digit?"
QUARTER = CANVAS // 2


@cache
def scans() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All 1,797 scans, `(1797, 8, 8)` with ink from 0 to 255, and their digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * 255 / 16).round().astype(np.uint8), data.target


@cache
def numbers(split: Split) -> Mapping[str, tuple[int, ...]]:
    """The scans of a split by digit: 60 % train, 10 % calibration, 30 % test, dealt out by a hash of their number."""
    _, target = scans()
    found: dict[str, tuple[int, ...]] = {}
    for digit in DIGITS:
        mine = [int(number) for number in np.flatnonzero(target == int(digit))]
        mine.sort(key=lambda number: hashlib.sha256(f"{NAME}/{number}".encode()).digest())
        first, second = round(0.6 * len(mine)), round(0.7 * len(mine))
        parts = {"train": mine[:first], "calibration": mine[first:second], "test": mine[second:]}
        found[digit] = tuple(parts[split])
    return found


def make(split: Split, index: int) -> Example:
    """Two to four digits of different ink, one of them asked for by place or by colour."""
    rng = generator(NAME, split, index)
    answer = rng.choice(DIGITS)
    others = [rng.choice([digit for digit in DIGITS if digit != answer]) for _ in range(rng.randint(1, 3))]
    places = rng.sample(list(PLACES), 1 + len(others))
    inks = rng.sample(INKS, 1 + len(others))
    image, _ = canvas(rng)
    for digit, place, ink in zip([answer, *others], places, inks, strict=True):
        number = rng.choice(numbers(split)[digit])
        left, top, size, color = _paste(image, number, PLACES[place], ink, rng)
        note("digit", digit, (left, top, left + size, top + size), color)
    template = rng.choice((BY_PLACE, BY_COLOR))
    question = fill(template, place=places[0], color=inks[0])
    return Example((pixels(image),), question, answer, template, DIGITS)


def _paste(
    image: Image.Image, number: int, quarter: tuple[int, int], ink: str, rng: random.Random
) -> tuple[int, int, int, Color]:
    """Draws a scan; returns its left and top edge, its side and its colour."""
    size = rng.randint(32, 46)
    coverage = Image.fromarray(scans()[0][number]).resize((size, size), Image.Resampling.BICUBIC)
    left, top = (QUARTER * part + rng.randint(0, QUARTER - size) for part in quarter)
    color = tint(ink, rng)
    image.paste(color, (left, top, left + size, top + size), coverage)
    return left, top, size, color


TASK = Task(NAME, "which handwritten digit stands at a place or has a colour", make)
