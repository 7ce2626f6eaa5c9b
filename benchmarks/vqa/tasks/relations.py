"""Where one object lies from another: left, right, above or below.

Every object has a colour of its own. The relation that holds is drawn first and the objects are placed after it,
so both directions of a question are equally likely whatever it names.
"""

from __future__ import annotations

import random

from benchmarks.vqa.base import Example, Split, Task, fill, generator
from benchmarks.vqa.draw import COLORS, SHAPES
from benchmarks.vqa.scene import Cell, Item, Kind, cells, paint

NAME = "relations"
STEPS: dict[str, Cell] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SIDES = "is the {a} left or right of the {b}?"
HEIGHTS = "is the {a} above or below the {b}?"
HOLDS = "is the {a} {relation} the {b}?"
NEIGHBOUR = "which shape is next to the {color} shape, {relation} it?"
TURNED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SHORT = {"left of": "left", "right of": "right", "above": "above", "below": "below"}


def make(split: Split, index: int) -> Example:
    """A question about two of four to seven objects in a grid of three by three."""
    rng = generator(NAME, split, index)
    template = rng.choice((SIDES, HEIGHTS, HOLDS, NEIGHBOUR))
    pool = {SIDES: ("left of", "right of"), HEIGHTS: ("above", "below")}.get(template, tuple(STEPS))
    true = rng.choice(pool)
    first, second = _apart(true, rng)
    if template == NEIGHBOUR:
        first, second = _adjacent(true, rng)
    count = rng.randint(4, 7)
    free = [cell for cell in cells(3) if cell not in (first, second)]
    places = [first, second, *rng.sample(free, count - 2)]
    kinds = [Kind(rng.choice(SHAPES), color) for color in rng.sample(list(COLORS), count)]
    items = [Item(kind, rng.randint(16, 24), cell) for kind, cell in zip(kinds, places, strict=True)]
    image = paint(items, 3, rng, stray=3)
    a, b = kinds[:2]
    if template == NEIGHBOUR:
        question = fill(template, color=b.color, relation=true)
        return Example((image,), question, a.shape, template, SHAPES)
    if template == HOLDS:
        answer = rng.choice(("yes", "no"))
        said = true if answer == "yes" else TURNED[true]
        return Example((image,), fill(template, a=str(a), relation=said, b=str(b)), answer, template, ("no", "yes"))
    choices = tuple(SHORT[name] for name in pool)
    return Example((image,), fill(template, a=str(a), b=str(b)), SHORT[true], template, choices)


def _apart(relation: str, rng: random.Random) -> tuple[Cell, Cell]:
    """Two cells for which the relation holds, whatever lies across it."""
    axis = 0 if STEPS[relation][0] else 1
    low, high = sorted(rng.sample(range(3), 2))
    near, far = (low, high) if sum(STEPS[relation]) < 0 else (high, low)
    across = rng.randrange(3), rng.randrange(3)
    if axis == 0:
        return (near, across[0]), (far, across[1])
    return (across[0], near), (across[1], far)


def _adjacent(relation: str, rng: random.Random) -> tuple[Cell, Cell]:
    """A cell that is the next one of the second cell in the relation's direction."""
    step = STEPS[relation]
    pairs = [((column + step[0], row + step[1]), (column, row)) for column, row in cells(3)]
    return rng.choice([pair for pair in pairs if pair[0] in cells(3)])


TASK = Task(NAME, "left, right, above or below between two named objects", make)
