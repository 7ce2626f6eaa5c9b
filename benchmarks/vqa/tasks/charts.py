"""Reading a value off a bar or line chart whose axis runs to 10, 50 or 100.

The answer is drawn first and evenly over all values; then a scale that can show it. A bar or point always
ends on one of the ten tick marks, seven pixels apart, so the value can be read exactly.
"""

from __future__ import annotations

from PIL import ImageDraw

from benchmarks.vqa.base import CANVAS, Example, Split, Task, fill, generator
from benchmarks.vqa.draw import COLORS, INKS, Color, canvas, extent, note, pixels, tint, write

NAME = "charts"
SCALES = (1, 5, 10)
STEPS = 10
VALUES = tuple(sorted({step * scale for scale in SCALES for step in range(1, STEPS + 1)}))
CHOICES = tuple(map(str, VALUES))
BAR_BY_COLOR = "what is the value of the {color} bar?"
BAR_BY_LETTER = "what is the value of bar {letter}?"
POINT = "what is the value at {letter}?"
LEFT, RIGHT, BASE, STEP = 21, CANVAS - 2, 80, 7
DARK: Color = (40, 40, 40)


def make(split: Split, index: int) -> Example:
    """Three to five bars or points, no two of the same height; the one asked for is at a random place."""
    rng = generator(NAME, split, index)
    answer = rng.choice(VALUES)
    scale = rng.choice([scale for scale in SCALES if answer % scale == 0 and answer <= STEPS * scale])
    count = rng.randint(3, 5)
    at = rng.randrange(count)
    heights = rng.sample([step for step in range(1, STEPS + 1) if step != answer // scale], count)
    heights[at] = answer // scale
    template = rng.choice((BAR_BY_COLOR, BAR_BY_LETTER, POINT))
    image, pen = canvas(rng)
    _axes(pen, scale, count)
    if template == POINT:
        _line(pen, heights, tint(rng.choice(INKS), rng), scale)
        question = fill(template, letter="abcde"[at])
    else:
        names = rng.sample(list(COLORS), count)
        _bars(pen, heights, [tint(name, rng) for name in names], scale)
        question = fill(template, letter="abcde"[at], color=names[at])
    return Example((pixels(image),), question, str(answer), template, CHOICES)


def centers(count: int) -> list[int]:
    """The columns that the bars or points stand on."""
    return [round(LEFT + (RIGHT - LEFT) * (number + 0.5) / count) for number in range(count)]


def _axes(pen: ImageDraw.ImageDraw, scale: int, count: int) -> None:
    for step in range(STEPS + 1):
        y = BASE - STEP * step
        labelled = step % 5 == 0
        if labelled:
            text = str(step * scale)
            left, top, right, bottom = extent(text, "DejaVuSans", 9)
            write(pen, text, (LEFT - 4 - (right - left), y - (bottom - top) // 2), "DejaVuSans", 9, DARK)
            pen.line((LEFT, y, RIGHT, y), fill=(200, 200, 200))
        pen.line((LEFT - (3 if labelled else 2), y, LEFT, y), fill=DARK)
    pen.line((LEFT, BASE - STEP * STEPS, LEFT, BASE), fill=DARK)
    pen.line((LEFT, BASE, RIGHT, BASE), fill=DARK)
    for letter, x in zip("abcde", centers(count), strict=False):
        left, top, right, _ = extent(letter, "DejaVuSans-Bold", 11)
        write(pen, letter, (x - (right - left) // 2, BASE + 4 + top - 2), "DejaVuSans-Bold", 11, DARK)


def _bars(pen: ImageDraw.ImageDraw, heights: list[int], colors: list[Color], scale: int) -> None:
    half = 34 // len(heights) - 2
    for x, height, color in zip(centers(len(heights)), heights, colors, strict=True):
        pen.rectangle((x - half, BASE - STEP * height, x + half, BASE - 1), fill=color)
        note("bar", str(height * scale), (x - half, BASE - STEP * height, x + half + 1, BASE), color)


def _line(pen: ImageDraw.ImageDraw, heights: list[int], color: Color, scale: int) -> None:
    points = [(x, BASE - STEP * height) for x, height in zip(centers(len(heights)), heights, strict=True)]
    pen.line(points, fill=color)
    for (x, y), height in zip(points, heights, strict=True):
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
        note("point", str(height * scale), (x - 3, y - 3, x + 4, y + 4), color)


TASK = Task(NAME, "height of a bar or point against the numbers of an axis", make)
