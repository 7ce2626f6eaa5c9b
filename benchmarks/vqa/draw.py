"""Colours, shapes, text and canvases: everything that puts pixels into an image.

Shapes are drawn without antialiasing in one flat colour each, so what an image shows can be read off its pixels
again. Fonts are those that matplotlib ships, so an image does not depend on what the system has installed.
Inside of `recording` everything that is drawn is noted as well; the pixels are the same either way.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.vqa.base import CANVAS

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom; right and bottom lie outside

COLORS: dict[str, Color] = {
    "red": (215, 30, 35),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 205, 10),
    "purple": (145, 50, 175),
    "orange": (250, 125, 15),
    "black": (20, 20, 20),
    "gray": (130, 130, 130),
}
INKS = ("red", "green", "blue", "purple", "orange", "black")  # dark enough for thin strokes on a pale canvas
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
JITTER = 10
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmtt10",
)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that was drawn: `kind` is shape, text, bar, point or digit, `name` what a question would call it.

    `parts` are the boxes of a text's characters, from the font's advance widths.
    """

    kind: str
    name: str
    box: Box
    color: Color
    parts: tuple[Box, ...] = ()


_RECORD: ContextVar[list[list[Mark]] | None] = ContextVar("record", default=None)


@contextmanager
def recording() -> Iterator[list[list[Mark]]]:
    """Collects the marks of every canvas that is opened inside, one list for each."""
    record: list[list[Mark]] = []
    token = _RECORD.set(record)
    try:
        yield record
    finally:
        _RECORD.reset(token)


def note(kind: str, name: str, box: Box, color: Color, parts: tuple[Box, ...] = ()) -> None:
    """Add a mark to the newest canvas of the record; does nothing where nobody records."""
    record = _RECORD.get()
    if record is not None:
        record[-1].append(Mark(kind, name, box, color, parts))


def canvas(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A pale canvas of a random tint, and the pen for it."""
    record = _RECORD.get()
    if record is not None:
        record.append([])
    image = Image.new("RGB", (CANVAS, CANVAS), tuple(rng.randint(228, 255) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    pen.fontmode = "L"
    return image, pen


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The image as a `(height, width, 3)` uint8 array of its own."""
    return np.array(image, dtype=np.uint8)


def tint(color: str, rng: random.Random) -> Color:
    """A colour near the named one, so that a name is a region of colour space rather than a constant."""
    red, green, blue = (min(255, max(0, value + rng.randint(-JITTER, JITTER))) for value in COLORS[color])
    return red, green, blue


def shape(pen: ImageDraw.ImageDraw, name: str, center: tuple[int, int], size: int, color: Color) -> None:
    """Draw a shape whose bounding box has `size` pixels a side, give or take one."""
    left, top = center[0] - size // 2, center[1] - size // 2
    right, bottom = left + size - 1, top + size - 1
    box = (left, top, right, bottom)
    if name == "circle":
        pen.ellipse(box, fill=color)
    elif name == "square":
        pen.rectangle(box, fill=color)
    elif name == "triangle":
        pen.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=color)
    elif name == "cross":
        third = round(size / 3)
        pen.rectangle((left + third, top, right - third, bottom), fill=color)
        pen.rectangle((left, top + third, right, bottom - third), fill=color)
    elif name == "ring":
        pen.ellipse(box, outline=color, width=max(2, round(size / 5)))
    elif name == "star":
        middle, radius = (left + right) / 2, size / 2
        # A pentagram is wider than high; lowering its middle puts it back into the box.
        pen.polygon([(middle + radius * x, top + radius * 1.05 + radius * y) for x, y in _star()], fill=color)
    else:
        raise ValueError(f"no shape is called {name!r}")
    note("shape", name, (left, top, right + 1, bottom + 1), color)


@cache
def _star() -> tuple[tuple[float, float], ...]:
    angles = [math.pi * (step / 5 - 0.5) for step in range(10)]
    lengths = [1.05 if step % 2 == 0 else 0.46 for step in range(10)]
    return tuple(
        (length * math.cos(angle), length * math.sin(angle)) for length, angle in zip(lengths, angles, strict=True)
    )


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's fonts. The basic layout is the one that every build of Pillow has."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def extent(text: str, name: str, size: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the ink of `text` drawn at the origin."""
    left, top, right, bottom = font(name, size).getbbox(text)
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def write(
    pen: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], name: str, size: int, color: Color = (20, 20, 20)
) -> None:
    """Draw `text` with the top left corner of its ink at `corner`."""
    left, top, right, bottom = extent(text, name, size)
    pen.text((corner[0] - left, corner[1] - top), text, font=font(name, size), fill=color)
    if _RECORD.get() is not None:
        ends = [corner[0] - left + font(name, size).getlength(text[:count]) for count in range(len(text) + 1)]
        low = corner[1] + bottom - top
        parts = tuple((start, corner[1], end, low) for start, end in itertools.pairwise(ends))
        note("text", text, (corner[0], corner[1], corner[0] + right - left, low), color, parts)
