"""Finding a field in a small document: a title and three or four lines of label and value.

The field is drawn first, then its value evenly over what that field can hold. The reverse question gives a value
and asks for its label; only the fields with numbers take part, as they all hold the same numbers.
"""

from __future__ import annotations

import random

from PIL import ImageDraw

from benchmarks.vqa.base import CANVAS, Example, Split, Task, fill, generator
from benchmarks.vqa.draw import INKS, canvas, extent, pixels, tint, write

NAME = "forms"
NUMBERS = tuple(map(str, range(10, 100)))
NUMERIC = ("total", "tax", "table", "room", "seat", "gate", "order", "age")
WORDY = {
    "day": ("monday", "tuesday", "friday", "sunday"),
    "month": ("january", "march", "april", "may", "june", "july", "august", "october"),
    "city": ("paris", "rome", "oslo", "london", "madrid", "berlin", "dublin", "vienna", "lima", "cairo"),
    "name": ("anna", "peter", "maria", "john", "lucy", "oscar", "emma", "david", "nina", "hugo"),
    "item": ("tea", "coffee", "soup", "bread", "salad", "cake", "rice", "fish"),
    "class": ("first", "second", "third"),
}
FIELDS = {**dict.fromkeys(NUMERIC, NUMBERS), **WORDY}
TITLES = ("receipt", "ticket", "order form", "invoice", "booking", "bill")
FIELD = "what is the {field}?"
LABEL = "which field says {value}?"
FAMILIES = (("DejaVuSans", "DejaVuSans-Bold"), ("DejaVuSerif", "DejaVuSerif-Bold"), ("STIXGeneral", "STIXGeneralBol"))
EDGE = 5


def make(split: Split, index: int) -> Example:
    """One form; the line that is asked for stands at a random place."""
    rng = generator(NAME, split, index)
    template = FIELD if rng.random() < 0.75 else LABEL
    field = rng.choice(NUMERIC if template == LABEL else tuple(FIELDS))
    value = rng.choice(FIELDS[field])
    rest = rng.sample([name for name in FIELDS if name != field], rng.randint(2, 3))
    if template == LABEL and not set(rest) & set(NUMERIC):
        rest[0] = rng.choice([name for name in NUMERIC if name != field])
    lines = [(field, value)]
    for name in rest:
        taken = {shown for _, shown in lines}
        lines.append((name, rng.choice([shown for shown in FIELDS[name] if shown not in taken])))
    rng.shuffle(lines)
    image, pen = canvas(rng)
    draw_lines(pen, lines, rng)
    if template == LABEL:
        return Example((pixels(image),), fill(template, value=value), field, template, NUMERIC)
    return Example((pixels(image),), fill(template, field=field), value, template, FIELDS[field])


def draw_lines(pen: ImageDraw.ImageDraw, lines: list[tuple[str, str]], rng: random.Random) -> None:
    """A title, and a line for each pair of a label and a value."""
    plain, bold = rng.choice(FAMILIES)
    size = rng.randint(12, 13) + (plain == "STIXGeneral")
    while any(
        _width(label + ":", plain, size) + _width(value, bold, size) > CANVAS - 2 * EDGE - 5 for label, value in lines
    ):
        size -= 1
    ink = tint(rng.choice(INKS), rng)
    title, aligned, colon = rng.choice(TITLES), rng.choice(("right", "column")), rng.choice(("", ":"))
    write(pen, title, (EDGE, 3), bold, size, ink)
    pen.line((EDGE, 18, CANVAS - EDGE, 18), fill=ink)
    height = (CANVAS - 20) // len(lines)
    for row, (label, value) in enumerate(lines):
        y = 20 + row * height + (height - 13) // 2
        # Ink boxes differ in height ("may", "tea"), so a line is aligned by its tallest letter, not by its ink.
        _on_line(pen, label + colon, EDGE, y, plain, size)
        last = CANVAS - EDGE - _width(value, bold, size)
        x = last if aligned == "right" else min(50, last)
        _on_line(pen, value, x, y, bold, size)


def _width(text: str, name: str, size: int) -> int:
    left, _, right, _ = extent(text, name, size)
    return right - left


def _on_line(pen: ImageDraw.ImageDraw, text: str, x: int, y: int, name: str, size: int) -> None:
    lift = extent(text, name, size)[1] - extent("l", name, size)[1]
    write(pen, text, (x, y + lift), name, size)


TASK = Task(NAME, "the value beside a label of a small document, or the label of a value", make)
