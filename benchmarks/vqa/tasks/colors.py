"""The colour of one described object among several, each of another colour.

The colour is drawn first. The object is described by its shape, by its shape and size where two have that
shape, or by its corner.
"""

from __future__ import annotations

from benchmarks.vqa.base import Example, Split, Task, fill, generator
from benchmarks.vqa.draw import COLORS, SHAPES
from benchmarks.vqa.scene import BIG, SMALL, Item, Kind, cells, paint

NAME = "colors"
BY_SHAPE = "what color is the {shape}?"
BY_SIZE = "what color is the {size} {shape}?"
BY_CORNER = "what color is the shape at the {corner}?"
CORNERS = {"top left": (0, 0), "top right": (2, 0), "bottom left": (0, 2), "bottom right": (2, 2)}
CHOICES = tuple(COLORS)


def make(split: Split, index: int) -> Example:
    """Three to six objects in a grid of three by three; the first is the one that is asked for."""
    rng = generator(NAME, split, index)
    answer = rng.choice(CHOICES)
    template = rng.choice((BY_SHAPE, BY_SIZE, BY_CORNER))
    count = rng.randint(3, 6)
    colors = [answer, *rng.sample([color for color in CHOICES if color != answer], count - 1)]
    shape = rng.choice(SHAPES)
    rest = [name for name in SHAPES if name != shape]
    size, corner = rng.choice(("big", "small")), rng.choice(list(CORNERS))
    places = rng.sample(cells(3), count)
    sizes = [rng.randint(16, 26) for _ in range(count)]
    shapes = [shape, *rng.choices(rest, k=count - 1)]
    if template == BY_CORNER:
        shapes = rng.choices(SHAPES, k=count)
        places = [CORNERS[corner], *rng.sample([cell for cell in cells(3) if cell != CORNERS[corner]], count - 1)]
    elif template == BY_SIZE:
        shapes[1] = shape
        sizes[:2] = (
            [rng.randint(*BIG), rng.randint(*SMALL)] if size == "big" else [rng.randint(*SMALL), rng.randint(*BIG)]
        )
    items = [Item(Kind(*each[:2]), *each[2:]) for each in zip(shapes, colors, sizes, places, strict=True)]
    rng.shuffle(items)
    question = fill(template, shape=shape, size=size, corner=corner)
    return Example((paint(items, 3, rng),), question, answer, template, CHOICES)


TASK = Task(NAME, "the colour of the object that a shape, size or corner describes", make)
