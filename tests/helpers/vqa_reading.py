"""Reads the images of the VQA tasks back from their pixels, without the code that drew them.

Flat objects are connected areas of one colour, told apart by how they fill their bounding box. Text is found by
rendering a guess and looking for exactly that coverage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Picture = NDArray[np.uint8]
NAMED = {
    "red": (220, 30, 30),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 205, 10),
    "purple": (145, 50, 175),
    "orange": (250, 125, 15),
    "black": (20, 20, 20),
    "gray": (130, 130, 130),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as its pixels show it; `x` and `y` are the middle of its bounding box."""

    shape: str
    color: str
    size: int
    x: float
    y: float


def background(picture: Picture) -> NDArray[np.uint8]:
    """The most frequent colour."""
    found, counts = np.unique(codes(picture), return_counts=True)
    return decoded(found[counts.argmax()])


def codes(picture: Picture) -> NDArray[np.int64]:
    """One number for each pixel's colour."""
    return picture.astype(np.int64) @ np.array([65536, 256, 1])


def decoded(code: int) -> NDArray[np.uint8]:
    """The colour that has a number."""
    return np.array([code >> 16, code >> 8 & 255, code & 255], dtype=np.uint8)


def named(color: NDArray[np.uint8]) -> str:
    """The palette's nearest name."""
    pixel = [int(value) for value in color]
    return min(NAMED, key=lambda name: sum(abs(a - b) for a, b in zip(NAMED[name], pixel, strict=True)))


def areas(picture: Picture, least: int = 20) -> Iterator[tuple[str, tuple[slice, slice], NDArray[np.bool_]]]:
    """Connected areas of one colour with at least so many pixels: colour name, place, mask."""
    code = codes(picture)
    found, counts = np.unique(code, return_counts=True)
    for each in found[(counts >= least) & (counts < counts.max())]:
        color = decoded(each)
        labels, _ = ndimage.label(code == each, structure=np.ones((3, 3)))
        for part, place in enumerate(ndimage.find_objects(labels), start=1):
            mask = labels[place] == part
            if mask.sum() >= least:
                yield named(color), place, mask


def form(mask: NDArray[np.bool_]) -> str:
    """The shape whose look a mask has, cropped to its bounding box."""
    height, width = mask.shape
    if not mask[height // 2, width // 2]:
        return "ring"
    if mask.mean() > 0.95:
        return "square"
    if mask[-1].mean() > 0.9:
        return "triangle"
    if mask.mean() > 0.68:
        return "circle"
    return "cross" if (mask == mask[::-1]).mean() > 0.95 else "star"


def objects(picture: Picture) -> list[Seen]:
    """Everything in a scene of flat shapes."""
    return [
        Seen(
            form(mask),
            color,
            max(mask.shape),
            (place[1].start + place[1].stop - 1) / 2,
            (place[0].start + place[0].stop - 1) / 2,
        )
        for color, place, mask in areas(picture)
    ]


def coverage(picture: Picture) -> tuple[NDArray[np.float64], str]:
    """How much ink each pixel has, 0 to 1, in an area with ink of one colour; and the ink's name."""
    difference = picture.astype(np.float64) - background(picture)
    distance = np.abs(difference).sum(-1)
    full = difference.reshape(-1, 3)[distance.argmax()]
    ink = picture.reshape(-1, 3)[distance.argmax()]
    return difference @ full / (full @ full), named(ink)


@cache
def loaded(font: str, size: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's fonts."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def rendered(text: str, font: str, size: int) -> NDArray[np.float64]:
    """The coverage of `text`, cropped to its ink."""
    image = Image.new("L", (160, 60))
    ImageDraw.Draw(image).text((20, 15), text, fill=255, font=loaded(font, size))
    found = np.asarray(image) / 255
    rows, columns = np.flatnonzero(found.max(1) > 0.02), np.flatnonzero(found.max(0) > 0.02)
    return found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def find(text: str, font: str, size: int, area: NDArray[np.float64]) -> tuple[int, int] | None:
    """Column and row at which `area` shows exactly this text, if it does."""
    mask = rendered(text, font, size)
    if mask.shape[0] > area.shape[0] or mask.shape[1] > area.shape[1]:
        return None
    # A line of the text that has much ink rules out nearly every place before whole windows are compared.
    row = int(mask.sum(1).argmax())
    lines = sliding_window_view(area[row : area.shape[0] - mask.shape[0] + row + 1], mask.shape[1], axis=1)
    for y, x in np.argwhere(np.abs(lines - mask[row]).max(-1) < 0.06):
        if np.abs(area[y : y + mask.shape[0], x : x + mask.shape[1]] - mask).max() < 0.06:
            return int(x), int(y)
    return None


def bands(area: NDArray[np.float64], gap: int = 4) -> list[slice]:
    """Groups of rows with ink, `gap` or more empty rows apart, from top to bottom."""
    rows = np.flatnonzero(area.max(1) > 0.05)
    cuts = np.flatnonzero(np.diff(rows) > gap)
    starts, ends = [rows[0], *rows[cuts + 1]], [*rows[cuts], rows[-1]]
    return [slice(max(0, start - 2), end + 3) for start, end in zip(starts, ends, strict=True)]
