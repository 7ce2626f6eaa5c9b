"""Is it there? As in POPE the absent objects are hard ones: something of their colour, shape or size is present.

An even index is a yes and an odd one a no, so any even number of consecutive examples is exactly balanced. Yes and
no scenes both show the named colour on another shape and the named shape in another colour.
"""

from __future__ import annotations

import random

from benchmarks.vqa.base import Example, Split, Task, fill, generator
from benchmarks.vqa.draw import COLORS, SHAPES
from benchmarks.vqa.scene import BIG, KINDS, SMALL, Item, Kind, cells, other, paint

NAME = "existence"
THERE = "is there a {color} {shape}?"
SEE = "can you see a {color} {shape}?"
SIZED = "is there a {size} {color} {shape}?"
SIZES = {"big": BIG, "small": SMALL}


def make(split: Split, index: int) -> Example:
    """Five to eight objects in a grid of three by three."""
    rng = generator(NAME, split, index)
    answer = "no" if index % 2 else "yes"
    template = rng.choice((THERE, SEE, SIZED))
    asked = Kind(rng.choice(SHAPES), rng.choice(list(COLORS)))
    size = rng.choice(("big", "small"))
    turned = "small" if size == "big" else "big"
    far = [kind for kind in KINDS if kind.shape != asked.shape and kind.color != asked.color]
    kinds = _look_alikes(asked, rng) + rng.choices(far, k=rng.randint(1, 4))
    # A yes scene has the object and a stranger where a no scene has two more look-alikes, so how often the colour
    # and the shape occur says nothing: only their meeting in one object does.
    if answer == "yes" or template == SIZED:
        kinds += [asked, rng.choice(far)]
    else:
        kinds += _look_alikes(asked, rng)
    shown = [(kind, rng.choice(("big", "small"))) for kind in kinds]
    if template == SIZED:
        shown[0] = (kinds[0], size)
        shown[-2] = (asked, size if answer == "yes" else turned)
    places = rng.sample(cells(3), len(shown))
    items = [Item(kind, rng.randint(*SIZES[word]), cell) for (kind, word), cell in zip(shown, places, strict=True)]
    question = fill(template, color=asked.color, shape=asked.shape, size=size)
    return Example((paint(items, 3, rng),), question, answer, template, ("no", "yes"))


def _look_alikes(asked: Kind, rng: random.Random) -> list[Kind]:
    """Something else of the asked colour, and something of the asked shape in another colour."""
    return [
        Kind(other(SHAPES, asked.shape, rng=rng), asked.color),
        Kind(asked.shape, other(COLORS, asked.color, rng=rng)),
    ]


TASK = Task(NAME, "whether a described object is present, beside look-alikes", make)
