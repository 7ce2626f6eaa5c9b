"""The answers of the VQA tasks, each checked against what the pixels of its images show."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("easy_vqa")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from PIL import Image, ImageDraw
from scipy import ndimage

from benchmarks.vqa import draw
from benchmarks.vqa.base import Example
from benchmarks.vqa.tasks import TASKS, charts, digits, easy, existence, forms, words
from tests.helpers.vqa_reading import Picture, Seen, areas, background, bands, coverage, find, form, objects, rendered

COUNT = 150
EASY_COLORS = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
}


def examples(name: str, count: int = COUNT) -> list[Example]:
    return [TASKS[name].example("test", index) for index in range(count)]


def matching(seen: list[Seen], text: str) -> list[Seen]:
    """The objects that a text names by colour, shape or both."""
    words = set(text.split())
    colors, shapes = words & set(draw.COLORS), words & set(draw.SHAPES)
    return [s for s in seen if (not colors or s.color in colors) and (not shapes or s.shape in shapes)]


def only(found: list[Seen]) -> Seen:
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("name", draw.SHAPES)
def test_the_reader_knows_every_shape_at_every_size(name: str) -> None:
    for size in range(12, 41):
        image = Image.new("RGB", (96, 96), "white")
        draw.shape(ImageDraw.Draw(image), name, (48, 48), size, (215, 30, 35))
        ((_, place, mask),) = areas(np.asarray(image))
        assert form(mask) == name, size
        assert max(abs(side.stop - side.start - size) for side in place) <= 2, size
        assert all(abs((side.stop + side.start) / 2 - 48) <= 1.5 for side in place), size


def test_counting() -> None:
    for e in examples("counting"):
        text = re.sub(r"(crosse|cross|circle|square|triangle|star|ring)s\b", lambda m: m[1], e.question)
        text = text.replace("crosse", "cross").replace("shapes", "")
        assert len(matching(objects(e.images[0]), text)) == int(e.answer), e.question


def test_color_of_the_described_object() -> None:
    for e in examples("colors"):
        seen = objects(e.images[0])
        assert len({s.color for s in seen}) == len(seen)
        if corner := re.search(r"the (top|bottom) (left|right)", e.question):
            x, y = 96 * (corner[2] == "right"), 96 * (corner[1] == "bottom")
            found = min(seen, key=lambda s: abs(s.x - x) + abs(s.y - y))
            assert abs(found.x - x) < 32 and abs(found.y - y) < 32
        elif size := re.search(r"big|small", e.question):
            pair = sorted(matching(seen, e.question.rstrip("?")), key=lambda s: s.size)
            assert len(pair) == 2 and pair[1].size >= pair[0].size + 8
            found = pair[size[0] == "big"]
        else:
            found = only(matching(seen, e.question.rstrip("?")))
        assert found.color == e.answer, e.question


def test_relations_hold_in_both_directions() -> None:
    answered: dict[str, set[str]] = {}
    for e in examples("relations", 2 * COUNT):
        seen = objects(e.images[0])
        said = re.findall(r"left of|right of|left|right|above|below", e.question)
        steps = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
        if e.question.startswith("which"):
            (b,), step = matching(seen, e.question.split(",")[0]), steps[said[0].split()[0]]
            at = min(seen, key=lambda s: abs(s.x - b.x - 32 * step[0]) + abs(s.y - b.y - 32 * step[1]))
            assert abs(at.x - b.x - 32 * step[0]) < 10 and abs(at.y - b.y - 32 * step[1]) < 10
            assert at.shape == e.answer, e.question
            continue
        a, b = (
            only(matching(seen, part))
            for part in re.search(r"is the (.*?) (?:left|right|above|below).* the (.*)\?", e.question).groups()
        )
        claim = e.answer if e.answer in steps else said[0].split()[0]
        step = steps[claim]
        ahead = (a.x - b.x) * step[0] + (a.y - b.y) * step[1]
        assert abs(ahead) >= (a.size + b.size) / 2 - 2, "the two overlap along the axis that is asked about"
        assert (ahead > 0) == (e.answer != "no"), e.question
        answered.setdefault(" ".join(said), set()).add(e.answer)
    assert answered["left right of"] == {"left", "right"} and answered["above below"] == {"above", "below"}
    assert all(answered[word] == {"yes", "no"} for word in ("left of", "right of", "above", "below"))


def test_what_does_not_exist_is_absent_and_has_look_alikes() -> None:
    for e in examples("existence"):
        seen, asked = objects(e.images[0]), e.question.rstrip("?")
        color = next(word for word in asked.split() if word in draw.COLORS)
        shape = next(word for word in asked.split() if word in draw.SHAPES)
        found = matching(seen, asked)
        if size := re.search(r"big|small", asked):
            assert len(found) == 1  # present in any case; its size decides
            found = [s for s in found if (s.size > 20) == (size[0] == "big")]
        assert bool(found) == (e.answer == "yes"), e.question
        assert any(s.color == color and s.shape != shape for s in seen)
        assert any(s.shape == shape and s.color != color for s in seen)


def test_existence_looks_alike_in_yes_and_no_scenes() -> None:
    """Neither how many objects there are nor how often the asked colour or shape occurs gives the answer away."""
    means: dict[str, list[tuple[int, int, int]]] = {"yes": [], "no": []}
    for e in examples("existence", 400):
        if e.template != existence.SIZED:
            seen = objects(e.images[0])
            words = e.question.rstrip("?").split()
            counts = len(seen), sum(s.color in words for s in seen), sum(s.shape in words for s in seen)
            means[e.answer].append(counts)
    assert np.abs(np.mean(means["yes"], 0) - np.mean(means["no"], 0)).max() < 0.35


def test_comparison() -> None:
    for e in examples("comparison", 2 * COUNT):
        scenes = [objects(image) for image in e.images]
        asked = e.question.rstrip("?")
        if "both images" in asked:
            first, second = (only(seen) for seen in scenes)
            same = first.shape == second.shape if "shape" in asked else first.color == second.color
            found = "yes" if same else "no"
        elif asked.startswith("which image"):
            shape = next(name for name in draw.SHAPES if name in asked)
            if "more" in asked:
                sides = [len(matching(seen, shape)) for seen in scenes]
            else:
                sides = [only(matching(seen, shape)).size * (1 if "bigger" in asked else -1) for seen in scenes]
            assert sides[0] != sides[1]
            found = "first" if sides[0] > sides[1] else "second"
        elif "form" in asked:
            a, b = (only(matching(scenes[0], color)) for color in re.findall(r"the (\w+) shape", asked))
            found = "yes" if a.shape == b.shape else "no"
        elif "more" in asked:
            a, b = re.findall(r"more (\w+)", asked)
            found = max((a, b), key=lambda color: len(matching(scenes[0], color)))
        else:
            shape = asked.split()[1]
            pair = re.findall(r"the (\w+) one", asked)
            order = max if "bigger" in asked else min
            found = order(pair, key=lambda color: only(matching(scenes[0], f"{color} {shape}")).size)
        assert found == e.answer, e.question


def axis(picture: Picture) -> tuple[int, int, int, int]:
    """Column of the vertical axis, its top and bottom row, and the number at its top."""
    dark = (picture == 40).all(-1)
    column = int(dark.sum(0).argmax())
    rows = np.flatnonzero(dark[:, column])
    ink = (background(picture) - picture[: rows[0] + 8, : column - 3].astype(float)) / (background(picture) - 40.0)
    places = {top: find(str(top), "DejaVuSans", 9, ink.mean(-1)) for top in (100, 50, 10)}
    most, (_, y) = next((top, place) for top, place in places.items() if place)
    middle = y + len(rendered(str(most), "DejaVuSans", 9)) / 2
    assert abs(middle - rows[0]) <= 1, "the number stands beside its tick mark"
    return column, int(rows[0]), int(rows[-1]), most


def test_bars_and_points_give_the_value_back() -> None:
    for e in examples("charts"):
        (picture,) = e.images
        column, top, bottom, most = axis(picture)
        plot = picture[:bottom, column + 1 :].copy()
        plot[(plot == 200).all(-1)] = background(picture)
        if e.template == charts.POINT:
            labels, count = ndimage.label(ndimage.binary_opening((plot != background(plot)).any(-1), np.ones((5, 5))))
            marks = sorted((x, y) for y, x in ndimage.center_of_mass(labels > 0, labels, range(1, count + 1)))
            tops = [("", y) for _, y in marks]
        else:
            bars = sorted(areas(plot), key=lambda area: area[1][1].start)
            tops = [(color, place[0].start) for color, place, _ in bars]
        letter = re.search(r"(?:bar|at) ([a-e])\?", e.question)
        if letter:
            height = tops["abcde".index(letter[1])][1]
        else:
            (height,) = (y for color, y in tops if color == e.question.split()[-2])
        assert abs((bottom - height) / (bottom - top) * most - int(e.answer)) < 0.03 * most, e.question


def test_words_are_written_where_the_question_says() -> None:
    unseen = 0
    for e in examples("words", 40):
        (picture,) = e.images
        whole = np.abs(picture.astype(float) - background(picture)).sum(-1) / 300
        lines = [picture[band] for band in bands(whole)]
        if place := re.search(r"top|middle|bottom", e.question):
            line = lines[{"top": 0, "middle": 1, "bottom": -1}[place[0]]]
        elif e.template == words.ALONE:
            (line,) = lines
        else:
            (line,) = (line for line in lines if coverage(line)[1] == e.question.split()[-2])
        ink, _ = coverage(line)
        near = [word for word in words.WORDS if len(word) == len(e.answer) and word[0] == e.answer[0]]
        sizes = range(10, words.SIZES[1] + 1)
        styles = [(font, size) for font in draw.FONTS for size in sizes if find(e.answer, font, size, ink)]
        assert styles, e.question
        assert {word for word in near for style in styles if find(word, *style, ink)} == {e.answer}
        unseen += e.answer in words.UNSEEN
    assert 3 < unseen < 25


def test_values_stand_beside_their_labels() -> None:
    for e in examples("forms", 25):
        (picture,) = e.images
        ink = ((background(picture) - picture[19:].astype(float)) / (background(picture) - 20.0)).mean(-1)
        asked = e.question.rstrip("?").split()[-1]
        label, value = (e.answer, asked) if e.template == forms.LABEL else (asked, e.answer)
        places = []
        for plain, bold in forms.FAMILIES:
            for size in range(9, 15):
                left, right = find(label, plain, size, ink), find(value, bold, size, ink)
                if left and right:
                    places.append((left, right))
        assert len(places) == 1, e.question
        (x, y), (to_x, to_y) = places[0]
        assert x < to_x and abs(y - to_y) <= 6, e.question


def normal(ink: np.ndarray) -> np.ndarray:
    """Ink cropped to where there is any, 16 by 16."""
    rows, columns = np.flatnonzero(ink.max(1) > 0.15), np.flatnonzero(ink.max(0) > 0.15)
    part = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    return np.asarray(Image.fromarray(part).resize((16, 16), Image.Resampling.BOX)).ravel()


def test_digits_are_scans_of_their_own_split() -> None:
    pictures, target = digits.scans()
    enlarged = [Image.fromarray(scan).resize((40, 40), Image.Resampling.BICUBIC) for scan in pictures]
    known = np.stack([normal(np.asarray(scan) / 255) for scan in enlarged])
    own = {int(number) for numbers in digits.numbers("test").values() for number in numbers}
    nearest = []
    for e in examples("digits"):
        quarters = [e.images[0][48 * y : 48 * y + 48, 48 * x : 48 * x + 48] for y in range(2) for x in range(2)]
        if place := re.search(r"(top|bottom) (left|right)", e.question):
            (quarter,) = [quarters[2 * (place[1] == "bottom") + (place[2] == "right")]]
        else:
            color = e.question.split()[-2]
            (quarter,) = (q for q in quarters if len(np.unique(q)) > 3 and coverage(q)[1] == color)
        number = int(((known - normal(coverage(quarter)[0])) ** 2).sum(1).argmin())
        assert str(target[number]) == e.answer, e.question
        nearest.append(number)
    assert np.mean([number in own for number in nearest]) > 0.97


def test_colors_of_easy_vqa() -> None:
    asked = [e for e in examples("easy_vqa", 300) if e.choices == easy.COLORS]
    assert len(asked) > 20
    for e in asked:
        (picture,) = e.images
        distance = np.abs(picture.astype(int) - background(picture)).sum(-1)
        ink = picture.reshape(-1, 3)[distance.argmax()].astype(int)
        assert min(EASY_COLORS, key=lambda name: np.abs(EASY_COLORS[name] - ink).sum()) == e.answer
