"""More questions about an image than its task asks: all of the tasks' templates that its marks answer beyond doubt.

An image is expensive and a question is cheap, so each image is asked some ten questions. Which ones are drawn so that
no answer is much more frequent than another. The first question of an image is always the one of its task.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.demo_model.templates import Label, ask, negated, templates
from benchmarks.vqa.base import CANVAS, fill
from benchmarks.vqa.draw import COLORS, SHAPES, Mark
from benchmarks.vqa.facts import color_name
from benchmarks.vqa.scene import BIG, SMALL, plural
from benchmarks.vqa.tasks import charts, colors, comparison, counting, digits, easy, existence, forms, relations, words

Pair = tuple[str, str]  # question, answer


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape of a scene, and the cell of the three by three grid that its middle lies in."""

    shape: str
    color: str
    size: int
    cell: tuple[int, int]


def things(marks: Sequence[Mark]) -> list[Thing]:
    """The shapes among the marks."""
    found = []
    for mark in marks:
        left, top, right, bottom = mark.box
        cell = int((left + right) / 2 * 3 / CANVAS), int((top + bottom) / 2 * 3 / CANVAS)
        found.append(Thing(mark.name, color_name(mark.color), int(right - left), cell))
    return found


def questions(task: str, record: Sequence[Sequence[Mark]], rng: random.Random, count: int) -> list[Pair]:
    """Up to `count` questions with their answers, none twice, in random order."""
    if len(record) == 2:
        first, second = map(things, record)
        return _draw({"pair": lambda: _pair(first, second, rng)}, "pair", rng, count)
    marks = record[0]
    if task == easy.NAME:
        label = Label(marks[0].name, color_name(marks[0].color))
        return _draw({task: lambda: ask(_easy_templates(), label, rng)}, task, rng, count)
    written = {"digits": _digits, "words": _words, "charts": _charts, "forms": _forms}
    if task in written:
        found = written[task](marks)
        return rng.sample(found, min(count, len(found)))
    scene = things(marks)
    aligned = task in ("colors", "relations", "existence")  # drawn in a grid of three by three
    families: dict[str, Callable[[], Pair | None]] = {
        "counting": lambda: _counting(scene, rng),
        "existence": lambda: _existence(scene, rng),
        "colors": lambda: _colors(scene, rng, aligned),
        "comparison": lambda: _comparison(scene, rng),
    }
    if aligned and len({thing.color for thing in scene}) == len(scene):
        families["relations"] = lambda: _relation(scene, rng)
    return _draw(families, task, rng, count)


def _draw(families: dict[str, Callable[[], Pair | None]], own: str, rng: random.Random, count: int) -> list[Pair]:
    """Half of the questions come from the task's own family, the others from any."""
    found: dict[str, str] = {}
    for _ in range(3 * count):
        name = own if rng.random() < 0.5 else rng.choice(list(families))
        pair = families[name]()
        if pair is not None:
            found[pair[0]] = pair[1]
        if len(found) == count:
            break
    return list(found.items())


@cache
def _easy_templates() -> list[str]:
    return templates(easy.questions()["train"])


def _counting(scene: Sequence[Thing], rng: random.Random) -> Pair | None:
    found: dict[int, list[str]] = defaultdict(list)
    found[len(scene)].append(counting.ALL)
    for color, count in Counter(thing.color for thing in scene).items():
        found[count].append(fill(counting.BY_COLOR, color=color))
    for shape, count in Counter(thing.shape for thing in scene).items():
        found[count].append(fill(counting.BY_SHAPE, shapes=plural(shape)))
    for (color, shape), count in Counter((thing.color, thing.shape) for thing in scene).items():
        found[count].append(fill(counting.BY_BOTH, color=color, shapes=plural(shape)))
    few = [count for count in found if count <= 6]
    count = rng.choices(few, few)[0]  # the higher, the rarer, and the harder
    return rng.choice(found[count]), str(count)


def _existence(scene: Sequence[Thing], rng: random.Random) -> Pair | None:
    thing, second = rng.choice(scene), rng.choice(scene)
    shape = rng.choice((second.shape, rng.choice(SHAPES)))
    color = thing.color
    if rng.random() < 0.5:
        shape, color = thing.shape, rng.choice((second.color, rng.choice(list(COLORS))))
    wanted = rng.random() < 0.5
    if wanted:
        shape, color = thing.shape, thing.color
    sizes = {there.size for there in scene if (there.shape, there.color) == (shape, color)}
    clear = all(size >= BIG[0] or size <= SMALL[1] for size in sizes)
    if clear and rng.random() < 0.4 and all(t.size >= BIG[0] or t.size <= SMALL[1] for t in scene):
        size = rng.choice(("big", "small"))
        there = any((each >= BIG[0]) == (size == "big") for each in sizes)
        return fill(existence.SIZED, size=size, color=color, shape=shape), "yes" if there else "no"
    if bool(sizes) != wanted:
        return None
    template = rng.choice((existence.THERE, existence.SEE))
    return fill(template, color=color, shape=shape), "yes" if sizes else "no"


def _colors(scene: Sequence[Thing], rng: random.Random, aligned: bool) -> Pair | None:
    thing = rng.choice(scene)
    alike = [other for other in scene if other.shape == thing.shape]
    corners = {cell: name for name, cell in colors.CORNERS.items()}
    if aligned and thing.cell in corners and rng.random() < 0.5:
        return fill(colors.BY_CORNER, corner=corners[thing.cell]), thing.color
    if len(alike) == 1:
        return fill(colors.BY_SHAPE, shape=thing.shape), thing.color
    other = alike[0] if alike[1] == thing else alike[1]
    small, big = sorted((thing.size, other.size))
    if len(alike) > 2 or small > SMALL[1] or big < BIG[0]:
        return None
    return fill(colors.BY_SIZE, size="big" if thing.size == big else "small", shape=thing.shape), thing.color


def _relation(scene: Sequence[Thing], rng: random.Random) -> Pair | None:
    a, b = rng.sample(list(scene), 2)
    kind = rng.random()
    if kind < 0.25:
        relation = rng.choice(list(relations.STEPS))
        x, y = relations.STEPS[relation]
        beside = [thing for thing in scene if thing.cell == (b.cell[0] + x, b.cell[1] + y)]
        return (fill(relations.NEIGHBOUR, color=b.color, relation=relation), beside[0].shape) if beside else None
    true = [
        name
        for name, (x, y) in relations.STEPS.items()
        if (a.cell[0] - b.cell[0]) * x > 0 or (a.cell[1] - b.cell[1]) * y > 0
    ]
    relation = rng.choice(true)
    names = {"a": f"{a.color} {a.shape}", "b": f"{b.color} {b.shape}"}
    if kind < 0.5:
        answer = rng.choice(("yes", "no"))
        said = relation if answer == "yes" else relations.TURNED[relation]
        return fill(relations.HOLDS, relation=said, **names), answer
    template = relations.SIDES if relations.STEPS[relation][0] else relations.HEIGHTS
    return fill(template, **names), relations.SHORT[relation]


def _comparison(scene: Sequence[Thing], rng: random.Random) -> Pair | None:
    counts = Counter(thing.color for thing in scene)
    kind = rng.randrange(3)
    if kind == 0:
        a, b = rng.choice(scene), rng.choice(scene)
        kinds = Counter((thing.shape, thing.color) for thing in scene)
        unique = kinds[a.shape, a.color] == kinds[b.shape, b.color] == 1
        if a.shape != b.shape or a.color == b.color or not unique or abs(a.size - b.size) < 6:
            return None
        word = rng.choice(("bigger", "smaller"))
        answer = a.color if (a.size > b.size) == (word == "bigger") else b.color
        return fill(comparison.BIGGER, shape=a.shape, bigger=word, a=a.color, b=b.color), answer
    if len(counts) < 2:
        return None
    a_color, b_color = rng.sample(sorted(counts), 2)
    if kind == 1:
        if counts[a_color] == counts[b_color]:
            return None
        return fill(comparison.MORE, a=a_color, b=b_color), max(a_color, b_color, key=lambda name: counts[name])
    if counts[a_color] != 1 or counts[b_color] != 1:
        return None
    shapes = {thing.color: thing.shape for thing in scene}
    same = shapes[a_color] == shapes[b_color]
    if not same and rng.random() < 0.6:
        return None
    return fill(comparison.ALIKE, a=a_color, b=b_color), "yes" if same else "no"


def _pair(first: Sequence[Thing], second: Sequence[Thing], rng: random.Random) -> Pair | None:
    if len(first) == len(second) == 1 and rng.random() < 0.8:
        feature = rng.choice(("shape", "color"))
        same = getattr(first[0], feature) == getattr(second[0], feature)
        return fill(comparison.BOTH, feature=feature), "yes" if same else "no"
    shape = rng.choice(SHAPES)
    here, there = ([thing for thing in scene if thing.shape == shape] for scene in (first, second))
    if len(here) == len(there) == 1 and abs(here[0].size - there[0].size) >= 6:
        word = rng.choice(("bigger", "smaller"))
        answer = "first" if (here[0].size > there[0].size) == (word == "bigger") else "second"
        return fill(comparison.WHICH_BIGGER, bigger=word, shape=shape), answer
    if len(here) != len(there) and min(len(here), len(there)):
        answer = "first" if len(here) > len(there) else "second"
        return fill(comparison.WHICH_MORE, shapes=plural(shape)), answer
    return None


def _digits(marks: Sequence[Mark]) -> list[Pair]:
    places = {quarter: name for name, quarter in digits.PLACES.items()}
    found = []
    for mark in marks:
        left, top, right, bottom = mark.box
        quarter = int((left + right) / 2) // digits.QUARTER, int((top + bottom) / 2) // digits.QUARTER
        found.append((fill(digits.BY_PLACE, place=places[quarter]), mark.name))
        found.append((fill(digits.BY_COLOR, color=color_name(mark.color)), mark.name))
    return found


def _words(marks: Sequence[Mark]) -> list[Pair]:
    lines = sorted(marks, key=lambda mark: mark.box[1])
    if len(lines) == 1:
        return [(words.ALONE, lines[0].name)]
    found = []
    for mark, place in zip(lines, words.PLACES[len(lines)], strict=True):
        found.append((fill(words.BY_PLACE, place=place), mark.name))
        found.append((fill(words.BY_COLOR, color=color_name(mark.color)), mark.name))
    return found


def _charts(marks: Sequence[Mark]) -> list[Pair]:
    bars = sorted((mark for mark in marks if mark.kind in ("bar", "point")), key=lambda mark: mark.box[0])
    found = []
    for letter, bar in zip("abcde", bars, strict=False):
        if bar.kind == "point":
            found.append((fill(charts.POINT, letter=letter), bar.name))
        else:
            found.append((fill(charts.BAR_BY_LETTER, letter=letter), bar.name))
            found.append((fill(charts.BAR_BY_COLOR, color=color_name(bar.color)), bar.name))
    return found


def _forms(marks: Sequence[Mark]) -> list[Pair]:
    _, *rest = (mark.name.rstrip(":") for mark in marks)
    found = []
    for field, value in zip(rest[::2], rest[1::2], strict=True):
        found.append((fill(forms.FIELD, field=field), value))
        if field in forms.NUMERIC:
            found.append((fill(forms.LABEL, value=value), field))
    return found


def spelled(question: str, task: str) -> bool:
    """Whether the answer is text of the image, which is answered letter by letter."""
    return task == words.NAME or (task == forms.NAME and not question.startswith("which"))


def question_words() -> list[str]:
    """Every word and mark that a question or a closed answer is made of, sorted; read text and numbers are not."""
    slots = [
        *COLORS,
        *SHAPES,
        *map(plural, SHAPES),
        *easy.COLORS,
        *easy.SHAPES,
        *forms.FIELDS,
        "big small bigger smaller",
    ]
    slots += [*relations.STEPS, *relations.SHORT.values(), *colors.CORNERS, *digits.PLACES, "top middle bottom"]
    slots += ["color shape first second yes no an"]
    modules = (charts, colors, comparison, counting, digits, existence, forms, relations, words)
    texts: Iterable[str] = (
        value for module in modules for value in vars(module).values() if isinstance(value, str) and value.endswith("?")
    )
    given = " ".join([*texts, *(_easy_templates()), *slots]).replace("?", " ? ").replace(",", " , ")
    return sorted({word for word in given.split() if "{" not in word})


def affirmative(pairs: Iterable[Pair]) -> list[Pair]:
    """Without the questions that ask for absence: an exclusive or is learned faster once presence is known."""
    return [pair for pair in pairs if not negated(pair[0])]
