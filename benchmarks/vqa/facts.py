"""What a training image shows, and from it a label for each of the 144 cells that a decoder has visual rows for.

The labels teach perception: every row of an image says what lies under it, instead of one answer for the whole image.
A label of -1 is left out of the loss, where a cell is cut by an edge; 0 means that there is nothing of the kind.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.demo_model.templates import COLORS as EASY_COLORS
from benchmarks.demo_model.templates import Label, infer_labels
from benchmarks.vqa.base import CANVAS, Example, Split
from benchmarks.vqa.draw import COLORS, INKS, SHAPES, Color, Mark, recording
from benchmarks.vqa.tasks import TASKS, charts, easy, forms, words
from opskip_compile.demo.easy_vqa import Question

CELL = 8
SIDE = CANVAS // CELL
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
OBJECTS = (*SHAPES, "rectangle", *(f"digit {digit}" for digit in range(10)), "bar", "point")
NAMED: Mapping[str, Color] = {**EASY_COLORS, **COLORS}
PALETTE = tuple(NAMED)
FIELDS = tuple(forms.FIELDS)
ORDINALS = 8  # an object is the first to seventh of its sort; what comes after that is not told apart
HEADS: Mapping[str, int] = {
    "object": 1 + len(OBJECTS),
    "color": 1 + len(PALETTE),
    "size": 5,
    "anchor": 2,
    "left character": 1 + len(CHARACTERS),
    "right character": 1 + len(CHARACTERS),
    "left index": 8,
    "right index": 8,
    "line": 6,
    "role": 4,
    "field": 1 + len(FIELDS),
    "value": 1 + len(charts.VALUES),
    "step": 1 + charts.STEPS,
    "scale": 1 + len(charts.SCALES),
    "of all": ORDINALS + 8,
    "of color": ORDINALS,
    "of shape": ORDINALS,
    "of kind": ORDINALS,
}
Labels = NDArray[np.int64]


def observe(task: str, split: Split, index: int) -> tuple[Example, list[list[Mark]]]:
    """An example with the marks of each of its images."""
    if task == easy.NAME:
        example = TASKS[task].example(split, index)
        return example, [[_only_object(example.images[0], easy.questions()[split][index])]]
    with recording() as record:
        example = TASKS[task].example(split, index)
    if task == charts.NAME:
        record = [[*marks, *_axis_scale(marks)] for marks in record]
    return example, record


def _axis_scale(marks: Sequence[Mark]) -> list[Mark]:
    top = max(int(mark.name) for mark in marks if mark.kind == "text" and mark.name.isdigit())
    return [Mark("scale", str(top // charts.STEPS), (0, 0, CANVAS, CANVAS), (0, 0, 0))]


@cache
def easy_labels() -> Mapping[str, Label]:
    """What the images of easy-VQA's training split show, by path, where their questions tell."""
    asked: list[Question] = [q for split in ("train", "calibration") for q in easy.questions()[split]]  # type: ignore[index]
    found = infer_labels(asked)
    return {str(q.image_path): found[q.image_id] for q in asked if q.image_id in found}


def _only_object(picture: NDArray[np.uint8], question: Question) -> Mark:
    """The object of an easy-VQA image: its box is read off the pixels, the rest off the questions about it."""
    label = easy_labels()[str(question.image_path)]
    inked = np.abs(picture.astype(np.int64) - picture[0, 0]).sum(2) > 60
    columns, rows = np.flatnonzero(inked.any(0)), np.flatnonzero(inked.any(1))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Mark("shape", label.shape, box, EASY_COLORS[label.color])


def color_name(color: Color) -> str:
    """The nearest colour that has a name; "red" of easy-VQA and of the drawn tasks are one name."""

    def distance(name: str) -> int:
        values = (NAMED[name], EASY_COLORS.get(name, NAMED[name]))
        return min(sum((a - b) ** 2 for a, b in zip(color, value, strict=True)) for value in values)

    return min(PALETTE, key=distance)


def cell_labels(marks: Sequence[Mark]) -> Labels:
    """Labels of one image, int64 `(144, heads)` in the order of `HEADS`, row by row."""
    grids = {name: np.zeros((SIDE, SIDE), dtype=np.int64) for name in HEADS}
    _label_objects([mark for mark in marks if mark.kind in ("shape", "digit", "bar", "point")], grids)
    texts = [mark for mark in marks if mark.kind == "text"]
    _label_texts(texts, grids)
    bars = [mark for mark in marks if mark.kind in ("bar", "point")]
    if bars:
        scale = next(int(mark.name) for mark in marks if mark.kind == "scale")
        _label_chart(bars, texts, scale, grids)
    elif len(texts) > 3:  # the pages of the reading task have one to three
        _label_form(texts, grids)
    return np.stack([grid.reshape(-1) for grid in grids.values()], axis=1)


def _overlap(box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """How many pixels of each cell lie in the box, `(12, 12)`."""
    edges = np.arange(SIDE) * CELL
    width = np.clip(np.minimum(edges + CELL, box[2]) - np.maximum(edges, box[0]), 0, None)
    height = np.clip(np.minimum(edges + CELL, box[3]) - np.maximum(edges, box[1]), 0, None)
    return height[:, None] * width[None, :]


def _label_objects(marks: Sequence[Mark], grids: Mapping[str, Labels]) -> None:
    """Kind, colour and size under each cell; the cell of an object's middle also says the how manieth it is."""
    counts: Counter[object] = Counter()
    for mark in sorted(marks, key=middle):
        overlap, size = _overlap(mark.box), mark.box[3] - mark.box[1]
        inside, cut = overlap >= 20, (overlap > 0) & (overlap < 20)
        name = (
            mark.kind if mark.kind in ("bar", "point") else f"digit {mark.name}" if mark.kind == "digit" else mark.name
        )
        values = {"object": 1 + OBJECTS.index(name), "color": 1 + PALETTE.index(color_name(mark.color))}
        if mark.kind == "shape":
            values["size"] = 1 + min(3, max(0, (int(size) - 12) // 4))
        for head, value in values.items():
            grids[head][cut & (grids[head] == 0)] = -1
            grids[head][inside] = value
        if mark.kind == "shape":
            at = middle(mark)
            grids["anchor"][at] = 1
            grids["object"][at], grids["color"][at] = values["object"], values["color"]
            color = values["color"]
            for head, key in (("of all", 0), ("of color", (color,)), ("of shape", name), ("of kind", (name, color))):
                counts[key] += 1
                grids[head][at] = min(HEADS[head] - 1, counts[key])


def middle(mark: Mark) -> tuple[int, int]:
    """Row and column of the cell in the middle of a mark."""
    left, top, right, bottom = mark.box
    return min(SIDE - 1, int((top + bottom) / 2 / CELL)), min(SIDE - 1, max(0, int((left + right) / 2 / CELL)))


def _label_texts(texts: Sequence[Mark], grids: Mapping[str, Labels]) -> None:
    """The characters at two places of each cell, which of its text each is, and which line it is in."""
    line, last = 0, -100.0
    for mark in sorted(texts, key=lambda mark: (mark.box[3], mark.box[0])):
        if mark.box[3] - last > 6:
            line, last = line + 1, mark.box[3]
        rows, whole = _rows(mark), _overlap(mark.box)
        for row, sure in rows.items():
            if not sure:
                for head in ("left character", "right character", "left index", "right index", "line", "color"):
                    grids[head][row, (whole[row] > 0) & (grids[head][row] == 0)] = -1
                continue
            grids["line"][row, whole[row] > 0] = min(line, HEADS["line"] - 1)
            grids["color"][row, whole[row] >= 16] = 1 + PALETTE.index(color_name(mark.color))
            for column in np.flatnonzero(whole[row] > 0):
                for head, x in (("left", column * CELL + 2), ("right", column * CELL + 6)):
                    for place, (start, _, end, _) in enumerate(mark.parts):
                        if start <= x < end and mark.name[place] in CHARACTERS:
                            grids[f"{head} character"][row, column] = 1 + CHARACTERS.index(mark.name[place])
                            grids[f"{head} index"][row, column] = min(place + 1, HEADS["left index"] - 1)


def _rows(mark: Mark) -> dict[int, bool]:
    """The rows of cells that a text's ink touches, and whether each has enough of it to be read."""
    _, top, _, bottom = mark.box
    shared = {row: min(bottom, (row + 1) * CELL) - max(top, row * CELL) for row in range(SIDE)}
    most = max(shared.values())
    return {row: pixels >= min(4, most) for row, pixels in shared.items() if pixels > 0}


def _label_chart(bars: Sequence[Mark], texts: Sequence[Mark], scale: int, grids: Mapping[str, Labels]) -> None:
    """The value of each bar or point, under it and under its letter; the scale everywhere."""
    grids["scale"][:] = 1 + charts.SCALES.index(scale)
    for bar in bars:
        middle = (bar.box[0] + bar.box[2]) / 2
        letter = min((t for t in texts if t.name.isalpha()), key=lambda t: abs((t.box[0] + t.box[2]) / 2 - middle))
        for mark in (bar, letter):
            overlap = _overlap(mark.box)
            inside = overlap >= min(20.0, overlap.max())
            grids["value"][(overlap > 0) & (grids["value"] == 0)] = -1
            grids["value"][inside] = 1 + charts.VALUES.index(int(bar.name))
            grids["step"][(overlap > 0) & (grids["step"] == 0)] = -1
            grids["step"][inside] = int(bar.name) // scale


def _label_form(texts: Sequence[Mark], grids: Mapping[str, Labels]) -> None:
    """Title, label or value, and the field that a line is about."""
    title, *rest = texts
    for label, value in zip(rest[::2], rest[1::2], strict=True):
        field = 1 + FIELDS.index(label.name.rstrip(":"))
        for role, mark in ((2, label), (3, value)):
            whole = _overlap(mark.box)
            for row, sure in _rows(mark).items():
                grids["role"][row, whole[row] > 0] = role if sure else -1
                grids["field"][row, whole[row] > 0] = field if sure else -1
    grids["role"][_overlap(title.box) >= 8] = 1


def word_scene(lines: Sequence[str], rng: random.Random) -> tuple[NDArray[np.uint8], list[Mark]]:
    """A picture of the reading task with other words than its own, and its marks."""
    with recording() as record:
        picture = words.page(lines, rng.sample(INKS, len(lines)), rng)
    return picture, record[0]
