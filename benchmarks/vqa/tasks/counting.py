"""Counting the objects of one kind among others.

The count is drawn first; how many other objects there are does not depend on it.
"""

from __future__ import annotations

from benchmarks.vqa.base import Example, Split, Task, fill, generator
from benchmarks.vqa.draw import COLORS, SHAPES
from benchmarks.vqa.scene import KINDS, Kind, plural, scatter

NAME = "counting"
COUNTS = tuple("123456")
ALL = "how many shapes are there?"
BY_COLOR = "how many {color} shapes are there?"
BY_SHAPE = "how many {shapes} are there?"
BY_BOTH = "how many {color} {shapes} are there?"


def make(split: Split, index: int) -> Example:
    """One to six objects that count, two to eight that do not (none where every shape counts)."""
    rng = generator(NAME, split, index)
    answer = rng.choice(COUNTS)
    template = rng.choice((ALL, BY_COLOR, BY_SHAPE, BY_BOTH))
    shape, color = rng.choice(SHAPES), rng.choice(list(COLORS))

    def counts(kind: Kind) -> bool:
        fits = {
            ALL: True,
            BY_COLOR: kind.color == color,
            BY_SHAPE: kind.shape == shape,
            BY_BOTH: kind == Kind(shape, color),
        }
        return fits[template]

    kinds = rng.choices([kind for kind in KINDS if counts(kind)], k=int(answer))
    if template != ALL:
        near = [kind for kind in KINDS if not counts(kind) and (kind.color == color or kind.shape == shape)]
        far = [kind for kind in KINDS if not counts(kind)]
        kinds += [rng.choice(near if rng.random() < 0.5 else far) for _ in range(rng.randint(2, 8))]
    question = fill(template, color=color, shapes=plural(shape))
    return Example((scatter(kinds, 4, rng, (15, 20)),), question, answer, template, COUNTS)


TASK = Task(NAME, "the number of objects of one colour, shape or both", make)
