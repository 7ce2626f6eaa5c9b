"""Where in its images the answer to a question is: the cells that an answer row should look at.

Seeing and looking up are learned apart. Once the cells know what they show, answers still stay at chance until some
attention head finds the right ones, which takes thousands of steps by itself. So two heads of one layer are told during
training. A question's own text says what it asks for, so any question of the tasks can be pointed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.vqa.base import CANVAS
from benchmarks.vqa.draw import Mark
from benchmarks.vqa.facts import CELL, SIDE, color_name, middle
from benchmarks.vqa.scene import plural
from benchmarks.vqa.tasks import charts, colors, comparison, counting, digits, easy, existence, forms, relations, words

Cells = tuple[int, ...]
Point = tuple[Cells, Cells]  # what the first and the second head look at; alike where there is one thing to look at
NOWHERE = -1  # the first row of the prompt: there is no such thing


@dataclass(frozen=True, slots=True)
class Spot:
    """Something drawn: what it is, and the cell of its middle, counted on through both images."""

    mark: Mark
    color: str
    cell: int
    image: int


def _cell(x: float, y: float, image: int = 0) -> int:
    return image * SIDE * SIDE + min(SIDE - 1, int(y) // CELL) * SIDE + min(SIDE - 1, int(x) // CELL)


def spots(record: Sequence[Sequence[Mark]]) -> list[Spot]:
    """All shapes, digits, bars and points, in the order of their cells."""
    found = []
    for image, marks in enumerate(record):
        for mark in marks:
            if mark.kind in ("shape", "digit", "bar", "point"):
                row, column = middle(mark)
                cell = image * SIDE * SIDE + row * SIDE + column
                found.append(Spot(mark, color_name(mark.color), cell, image))
    return sorted(found, key=lambda spot: spot.cell)


def points(question: str, answer: str, record: Sequence[Sequence[Mark]]) -> list[Point]:
    """One point for each token of the answer but its end."""
    template, slots = _parse(question)
    if template in (words.ALONE, words.BY_PLACE, words.BY_COLOR, forms.FIELD):
        mark = _line(template, slots, record[0])
        _, top, _, bottom = mark.box
        cells = [_cell((left + right) / 2, (top + bottom) / 2) for left, _, right, _ in mark.parts[: len(answer)]]
        return [((cell,), (cell,)) for cell in cells]
    if template in (charts.BAR_BY_COLOR, charts.BAR_BY_LETTER, charts.POINT):
        return [_chart(template, slots, record)] * len(answer)
    if template == forms.LABEL:
        texts = record[0][1:]
        at = next(number for number, mark in enumerate(texts) if mark.name == slots["value"])
        return [(_text_cell(texts[at]), _text_cell(texts[at - 1]))]
    return [_SCENES[template](spots(record), slots)]


def _text_cell(mark: Mark) -> Cells:
    left, top, right, bottom = mark.parts[len(mark.parts) // 2]
    return (_cell((left + right) / 2, (top + bottom) / 2),)


def _line(template: str, slots: Mapping[str, str], marks: Sequence[Mark]) -> Mark:
    if template == forms.FIELD:
        at = next(number for number, mark in enumerate(marks) if number and mark.name.rstrip(":") == slots["field"])
        return marks[at + 1]
    lines = sorted(marks, key=lambda mark: mark.box[1])
    if template == words.ALONE:
        return lines[0]
    if template == words.BY_PLACE:
        return lines[words.PLACES[len(lines)].index(slots["place"])]
    return next(mark for mark in lines if color_name(mark.color) == slots["color"])


def _chart(template: str, slots: Mapping[str, str], record: Sequence[Sequence[Mark]]) -> Point:
    if template == charts.BAR_BY_COLOR:
        found: Cells = tuple(spot.cell for spot in spots(record) if spot.color == slots["color"])
    else:
        found = next(_text_cell(mark) for mark in record[0] if mark.kind == "text" and mark.name == slots["letter"])
    return found, found


def _which(
    found: Sequence[Spot], shape: str | None = None, color: str | None = None, image: int | None = None
) -> list[Spot]:
    return [
        spot
        for spot in found
        if shape in (None, spot.mark.name) and color in (None, spot.color) and image in (None, spot.image)
    ]


def _both(found: Sequence[Spot]) -> Point:
    cells = tuple(spot.cell for spot in found) or (NOWHERE,)
    return cells, cells


def _count(found: Sequence[Spot]) -> Point:
    """The last one knows how many there were before it."""
    return (found[-1].cell,), tuple(spot.cell for spot in found)


def _two(first: Sequence[Spot], second: Sequence[Spot]) -> Point:
    return (first[-1].cell,), (second[-1].cell,)


def _size(spot: Spot) -> float:
    return spot.mark.box[2] - spot.mark.box[0]


def _sized(found: Sequence[Spot], size: str) -> list[Spot]:
    return [spot for spot in found if (_size(spot) > 20) == (size == "big")]


def _place(spot: Spot, parts: int) -> tuple[int, int]:
    left, top, right, bottom = spot.mark.box
    return int((left + right) / 2 * parts / CANVAS), int((top + bottom) / 2 * parts / CANVAS)


def _named(found: Sequence[Spot], name: str) -> list[Spot]:
    color, shape = name.split()
    return _which(found, shape, color)


def _neighbour(found: Sequence[Spot], slots: Mapping[str, str]) -> Point:
    known = _which(found, color=slots["color"])
    (x, y), (right, down) = _place(known[0], 3), relations.STEPS[slots["relation"]]
    return _two([spot for spot in found if _place(spot, 3) == (x + right, y + down)], known)


def _related(found: Sequence[Spot], slots: Mapping[str, str]) -> Point:
    return _two(_named(found, slots["a"]), _named(found, slots["b"]))


_SINGULAR = {plural(shape): shape for shape in colors.SHAPES}
_SCENES: Mapping[str, Callable[[Sequence[Spot], Mapping[str, str]], Point]] = {
    counting.ALL: lambda found, _: _count(found),
    counting.BY_COLOR: lambda found, slots: _count(_which(found, color=slots["color"])),
    counting.BY_SHAPE: lambda found, slots: _count(_which(found, _SINGULAR[slots["shapes"]])),
    counting.BY_BOTH: lambda found, slots: _count(_which(found, _SINGULAR[slots["shapes"]], slots["color"])),
    existence.THERE: lambda found, slots: _both(_which(found, slots["shape"], slots["color"])),
    existence.SEE: lambda found, slots: _both(_which(found, slots["shape"], slots["color"])),
    existence.SIZED: lambda found, slots: _both(_sized(_which(found, slots["shape"], slots["color"]), slots["size"])),
    colors.BY_SHAPE: lambda found, slots: _both(_which(found, slots["shape"])),
    colors.BY_SIZE: lambda found, slots: _both(_sized(_which(found, slots["shape"]), slots["size"])),
    colors.BY_CORNER: lambda found, slots: _both([s for s in found if _place(s, 3) == colors.CORNERS[slots["corner"]]]),
    relations.SIDES: _related,
    relations.HEIGHTS: _related,
    relations.HOLDS: _related,
    relations.NEIGHBOUR: _neighbour,
    comparison.BIGGER: lambda found, slots: _two(
        _which(found, slots["shape"], slots["a"]), _which(found, slots["shape"], slots["b"])
    ),
    comparison.MORE: lambda found, slots: _two(_which(found, color=slots["a"]), _which(found, color=slots["b"])),
    comparison.ALIKE: lambda found, slots: _two(_which(found, color=slots["a"]), _which(found, color=slots["b"])),
    comparison.WHICH_MORE: lambda found, slots: _two(
        _which(found, _SINGULAR[slots["shapes"]], image=0), _which(found, _SINGULAR[slots["shapes"]], image=1)
    ),
    comparison.WHICH_BIGGER: lambda found, slots: _two(
        _which(found, slots["shape"], image=0), _which(found, slots["shape"], image=1)
    ),
    comparison.BOTH: lambda found, _: _two(_which(found, image=0), _which(found, image=1)),
    digits.BY_PLACE: lambda found, slots: _both([s for s in found if _place(s, 2) == digits.PLACES[slots["place"]]]),
    digits.BY_COLOR: lambda found, slots: _both(_which(found, color=slots["color"])),
}


def _any(*texts: str) -> str:
    return "|".join(texts)


_COLOR, _SHAPE = _any(*colors.COLORS), _any(*colors.SHAPES)
_SLOTS = {
    **dict.fromkeys("ab", f"(?:{_COLOR})(?: (?:{_SHAPE}))?"),
    "color": _COLOR,
    "shape": _SHAPE,
    "shapes": _any(*_SINGULAR),
    "size": "big|small",
    "bigger": "bigger|smaller",
    "feature": "color|shape",
    "field": _any(*forms.FIELDS),
    "letter": "[a-e]",
    "value": r"\d+",
    "relation": _any(*relations.STEPS),
    "place": _any(*digits.PLACES, "top", "middle", "bottom"),
    "corner": _any(*colors.CORNERS),
}


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Every template as a pattern in which a slot takes what is of its kind."""
    modules = (charts, colors, comparison, counting, digits, existence, forms, relations, words)
    texts = [text for module in modules for text in vars(module).values() if isinstance(text, str) and text[-1:] == "?"]
    patterns = []
    for text in texts:
        escaped = re.escape(text).replace(r"\ a\ \{", r"\ an?\ \{")
        slots = re.sub(r"\\{(\w+)\\}", lambda found: f"(?P<{found[1]}>{_SLOTS[found[1]]})", escaped)
        patterns.append((text, re.compile(slots)))
    return patterns


@cache
def _parse(question: str) -> tuple[str, dict[str, str]]:
    """The template of a drawn task and what fills it; raises `ValueError` for a question that is none of theirs."""
    for template, pattern in _patterns():
        if found := pattern.fullmatch(question):
            return template, found.groupdict()
    raise ValueError(f"no task asks {question!r}")


def pointed(task: str, question: str, answer: str, record: Sequence[Sequence[Mark]]) -> list[Point]:
    """As `points`; whatever easy-VQA asks is about its only object."""
    if task == easy.NAME:
        cell = spots(record)[0].cell
        return [((cell,), (cell,))]
    return points(question, answer, record)
