"""Comparing two objects of one image, or two images with each other.

Every question leaves two answers open; the one that will be right is drawn first.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.vqa.base import Example, Split, Task, fill, generator
from benchmarks.vqa.draw import COLORS, SHAPES
from benchmarks.vqa.scene import BIG, Item, Kind, cells, other, paint, plural, scatter

NAME = "comparison"
BIGGER = "which {shape} is {bigger}, the {a} one or the {b} one?"
MORE = "are there more {a} shapes or more {b} shapes?"
ALIKE = "do the {a} shape and the {b} shape have the same form?"
WHICH_MORE = "which image has more {shapes}?"
WHICH_BIGGER = "which image has the {bigger} {shape}?"
BOTH = "do both images show the same {feature}?"
ORDINALS = ("first", "second")
Picture = NDArray[np.uint8]


def make(split: Split, index: int) -> Example:
    """Half of the questions are about one image, half about two."""
    rng = generator(NAME, split, index)
    return rng.choice((_bigger, _more, _alike, _which_more, _which_bigger, _both))(rng)


def _bigger(rng: random.Random) -> Example:
    colors, shape = rng.sample(list(COLORS), 4), rng.choice(SHAPES)
    a, b = colors[:2]
    answer, word = rng.choice((a, b)), rng.choice(("bigger", "smaller"))
    places = rng.sample(cells(3), 4)
    kinds = [Kind(shape, a), Kind(shape, b), *(Kind(other(SHAPES, shape, rng=rng), color) for color in colors[2:])]
    big = (answer == a) == (word == "bigger")
    sizes = [rng.randint(*BIG), rng.randint(14, 19)] if big else [rng.randint(14, 19), rng.randint(*BIG)]
    sizes += [rng.randint(14, 28) for _ in range(2)]
    items = [Item(*each) for each in zip(kinds, sizes, places, strict=True)][: rng.randint(2, 4)]
    question = fill(BIGGER, shape=shape, bigger=word, a=a, b=b)
    return Example((paint(items, 3, rng),), question, answer, BIGGER, (a, b))


def _more(rng: random.Random) -> Example:
    a, b, third = rng.sample(list(COLORS), 3)
    answer = rng.choice((a, b))
    few, many = sorted(rng.sample(range(1, 7), 2))
    colors = [color for color in (a, b) for _ in range(many if color == answer else few)]
    colors += [third] * rng.randint(0, 3)
    picture = scatter([Kind(rng.choice(SHAPES), color) for color in colors], 4, rng, (15, 20))
    return Example((picture,), fill(MORE, a=a, b=b), answer, MORE, (a, b))


def _alike(rng: random.Random) -> Example:
    answer = rng.choice(("yes", "no"))
    colors = rng.sample(list(COLORS), rng.randint(3, 5))
    a, b = colors[:2]
    shape = rng.choice(SHAPES)
    shapes = [shape, shape if answer == "yes" else other(SHAPES, shape, rng=rng)]
    shapes += rng.choices(SHAPES, k=len(colors) - 2)
    picture = scatter([Kind(*each) for each in zip(shapes, colors, strict=True)], 3, rng)
    return Example((picture,), fill(ALIKE, a=a, b=b), answer, ALIKE, ("no", "yes"))


def _which_more(rng: random.Random) -> Example:
    shape = rng.choice(SHAPES)
    few, many = sorted(rng.sample(range(1, 7), 2))

    def scene(count: int) -> Picture:
        # As many objects in all, on average, whichever image it is: counting everything gives nothing away.
        shapes = [shape] * count + [other(SHAPES, shape, rng=rng) for _ in range(many - count + rng.randint(0, 4))]
        return scatter([Kind(each, rng.choice(list(COLORS))) for each in shapes], 4, rng, (15, 20))

    return _ordered(rng, lambda: scene(many), lambda: scene(few), fill(WHICH_MORE, shapes=plural(shape)), WHICH_MORE)


def _which_bigger(rng: random.Random) -> Example:
    shape, word = rng.choice(SHAPES), rng.choice(("bigger", "smaller"))

    def scene(sizes: tuple[int, int]) -> Picture:
        shapes = [shape] + [other(SHAPES, shape, rng=rng) for _ in range(rng.randint(0, 2))]
        limits = [sizes] + [(14, 28)] * (len(shapes) - 1)
        places = rng.sample(cells(3), len(shapes))
        items = [
            Item(Kind(each, rng.choice(list(COLORS))), rng.randint(*limit), cell)
            for each, limit, cell in zip(shapes, limits, places, strict=True)
        ]
        return paint(items, 3, rng)

    right, wrong = (BIG, (14, 19)) if word == "bigger" else ((14, 19), BIG)
    question = fill(WHICH_BIGGER, bigger=word, shape=shape)
    return _ordered(rng, lambda: scene(right), lambda: scene(wrong), question, WHICH_BIGGER)


def _ordered(
    rng: random.Random, right: Callable[[], Picture], wrong: Callable[[], Picture], question: str, template: str
) -> Example:
    answer = rng.choice(ORDINALS)
    images = (right(), wrong()) if answer == "first" else (wrong(), right())
    return Example(images, question, answer, template, ORDINALS)


def _both(rng: random.Random) -> Example:
    answer, feature = rng.choice(("yes", "no")), rng.choice(("shape", "color"))
    kind = Kind(rng.choice(SHAPES), rng.choice(list(COLORS)))
    shape, color = kind.shape, kind.color
    # What is not asked for agrees half of the time, so identical images are no shortcut.
    if (answer == "no") if feature == "shape" else rng.random() < 0.5:
        shape = other(SHAPES, shape, rng=rng)
    if (answer == "no") if feature == "color" else rng.random() < 0.5:
        color = other(COLORS, color, rng=rng)
    images = (scatter([kind], 2, rng, (18, 40)), scatter([Kind(shape, color)], 2, rng, (18, 40)))
    return Example(images, fill(BOTH, feature=feature), answer, BOTH, ("no", "yes"))


TASK = Task(NAME, "which of two objects or images has more, or whether they agree", make)
