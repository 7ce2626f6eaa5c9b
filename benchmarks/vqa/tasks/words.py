"""Reading: one to three words in random fonts and inks; the answer is the word that the question points at.

A fifth of the vocabulary is kept out of training and calibration. A quarter of the test questions ask for one of
those words, so the task tells reading from recognising a known picture of a word.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.vqa.base import CANVAS, Example, Split, Task, fill, generator
from benchmarks.vqa.draw import FONTS, INKS, canvas, extent, pixels, tint, write
from benchmarks.vqa.vocabulary import WORDS

NAME = "words"
ALONE = "what word is written?"
BY_PLACE = "what is the {place} word?"
BY_COLOR = "what is the {color} word?"
PLACES = {1: ("only",), 2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
SIZES = (16, 24)
MARGIN = 3
UNSEEN_SHARE = 0.25


def _held_out(word: str) -> bool:
    return hashlib.sha256(f"{NAME}/{word}".encode()).digest()[0] < 51


UNSEEN = tuple(word for word in WORDS if _held_out(word))
SEEN = tuple(word for word in WORDS if not _held_out(word))


def make(split: Split, index: int) -> Example:
    """The word asked for is drawn first, then the others, then where each of them stands."""
    rng = generator(NAME, split, index)
    answer = rng.choice(UNSEEN if split == "test" and rng.random() < UNSEEN_SHARE else SEEN)
    others = rng.sample([word for word in SEEN if word != answer], rng.randint(0, 2))
    lines = [answer, *others]
    rng.shuffle(lines)
    inks = rng.sample(INKS, len(lines))
    picture = page(lines, inks, rng)
    at = lines.index(answer)
    template = rng.choice((BY_PLACE, BY_COLOR)) if others else ALONE
    question = fill(template, place=PLACES[len(lines)][at], color=inks[at])
    return Example((picture,), question, answer, template, WORDS)


def page(lines: Sequence[str], inks: Sequence[str], rng: random.Random) -> NDArray[np.uint8]:
    """The pixels of one to three words, each in its ink, from top to bottom."""
    image, pen = canvas(rng)
    height = CANVAS // len(lines)
    for row, (word, ink) in enumerate(zip(lines, inks, strict=True)):
        name, size = _fitting(word, rng)
        left, top, right, bottom = extent(word, name, size)
        x = rng.randint(MARGIN, CANVAS - MARGIN - (right - left))
        y = row * height + rng.randint(MARGIN, max(MARGIN, height - (bottom - top) - MARGIN))
        write(pen, word, (x, y), name, size, tint(ink, rng))
    return pixels(image)


def _fitting(word: str, rng: random.Random) -> tuple[str, int]:
    """A font, and a random size of it at which the word is no wider than the canvas allows."""
    name, size = rng.choice(FONTS), rng.randint(*SIZES)
    while extent(word, name, size)[2] - extent(word, name, size)[0] > CANVAS - 2 * MARGIN:
        size -= 1
    return name, size


TASK = Task(NAME, "reading the word at a place or in a colour", make)
