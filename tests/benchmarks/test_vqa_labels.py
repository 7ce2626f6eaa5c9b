"""The training recipe of the VQA suite: labels, and questions that point at what they ask for."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("easy_vqa")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


from benchmarks.vqa import asking, mixing, pointing
from benchmarks.vqa.draw import COLORS, JITTER
from benchmarks.vqa.facts import CHARACTERS, HEADS, OBJECTS, PALETTE, SIDE, cell_labels, color_name, observe
from benchmarks.vqa.tasks import TASKS, words

DRAWN = [name for name in TASKS if name != "easy_vqa"]


@pytest.mark.parametrize("name", DRAWN)
def test_recording_changes_no_pixel(name: str) -> None:
    for index in range(4):
        noted, record = observe(name, "train", index)
        plain = TASKS[name].example("train", index)
        assert (noted.question, noted.answer) == (plain.question, plain.answer)
        assert all((a == b).all() for a, b in zip(noted.images, plain.images, strict=True))
        assert len(record) == len(plain.images) and all(record)


def labels_of(name: str, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The pixels of each cell of an example's first image, `(144, 64, 3)`, and the labels by head."""
    example, record = observe(name, "train", index)
    cells = example.images[0].reshape(SIDE, 8, SIDE, 8, 3).transpose(0, 2, 1, 3, 4).reshape(SIDE * SIDE, 64, 3)
    labels = cell_labels(record[0])
    assert labels.shape == (SIDE * SIDE, len(HEADS)) and labels.min() >= -1
    assert (labels.max(0) < np.array(list(HEADS.values()))).all()
    return cells, dict(zip(HEADS, labels.T, strict=True))


@pytest.mark.parametrize("name", ["counting", "colors", "relations", "existence", "comparison"])
def test_labels_of_scenes_agree_with_the_pixels(name: str) -> None:
    for index in range(12):
        cells, labels = labels_of(name, index)
        empty = labels["object"] == 0
        assert (cells[empty] >= 228).mean() > 0.995  # the canvas; a star may be a pixel wider than its box
        found = 0
        for cell, color, kind in zip(cells, labels["color"], labels["object"], strict=True):
            if color > 0 and kind > 0:
                wanted = np.array(COLORS[PALETTE[color - 1]])
                found += bool((np.abs(cell.astype(int) - wanted).max(1) <= JITTER).any())
        assert found >= 0.6 * (labels["object"] > 0).sum()  # a box has corners, and a ring a middle, without its colour
        assert labels["anchor"].sum() == (labels["of all"] > 0).sum() == labels["of all"].max()


@pytest.mark.parametrize("name", ["words", "forms"])
def test_labels_of_texts_spell_them(name: str) -> None:
    """Reading each line's labels from left to right gives its characters, and each lies on ink."""
    for index in range(12):
        _, record = observe(name, "train", index)
        cells, labels = labels_of(name, index)
        for mark in record[0]:
            rows = [row for row in range(SIDE) if row * 8 + 4 >= mark.box[1] and row * 8 + 4 < mark.box[3]]
            columns = range(int(mark.box[0] // 8), int(-(-mark.box[2] // 8)))
            read: dict[int, str] = {}
            for cell in (rows[0] * SIDE + column for column in columns):
                for side in ("left", "right"):
                    if labels[f"{side} character"][cell] > 0:
                        read[labels[f"{side} index"][cell]] = CHARACTERS[labels[f"{side} character"][cell] - 1]
            letters = mark.name.rstrip(":")[:6]
            assert " " in letters or [read.get(place + 1, letter) for place, letter in enumerate(letters)] == [*letters]
        inked = labels["color"] > 0
        assert (cells[inked].min((1, 2)) < 228).mean() > 0.7  # "l" is higher than "a" beside it


def test_labels_of_charts_hold_the_values() -> None:
    for index in range(12):
        _, record = observe("charts", "train", index)
        bars = [mark for mark in record[0] if mark.kind in ("bar", "point")]
        _, labels = labels_of("charts", index)
        assert {labels["value"].max(), *labels["value"]} - {-1, 0} == {
            1 + asking.charts.VALUES.index(int(bar.name)) for bar in bars
        }
        assert len(set(labels["scale"])) == 1


@pytest.mark.parametrize("name", list(TASKS))
def test_the_asker_answers_as_the_task_does(name: str) -> None:
    rng, met = random.Random(0), 0
    for index in range(40):
        example, record = observe(name, "train", index)
        pairs = asking.questions(name, record, rng, 40)
        assert len(dict(pairs)) == len(pairs)
        found = dict(pairs).get(example.question)
        met += found is not None
        assert found in (None, example.answer)
    assert met >= 12


@pytest.mark.parametrize("name", list(TASKS))
def test_questions_point_at_what_they_ask_for(name: str) -> None:
    """The cells that an answer should look at are labelled with the answer, where a label can say it."""
    rng = random.Random(0)
    letters: list[bool] = []
    for index in range(20):
        example, record = observe(name, "train", index)
        labels = dict(zip(HEADS, np.concatenate([cell_labels(marks) for marks in record]).T, strict=True))
        for question, answer in [(example.question, example.answer), *asking.questions(name, record, rng, 6)]:
            found = pointing.pointed(name, question, answer, record)
            assert found and all(first and second for first, second in found)
            first, second = found[0]
            if name == "digits":
                assert labels["object"][first[0]] == 1 + OBJECTS.index(f"digit {answer}")
            elif name == "charts":
                assert labels["value"][first[0]] == 1 + asking.charts.VALUES.index(int(answer))
            elif question.startswith("how many"):
                assert len(second) == int(answer) and first[0] == second[-1]
            elif question.startswith("what color is") and name == "colors":
                assert PALETTE[labels["color"][first[0]] - 1] == answer
            elif asking.spelled(question, name):
                for letter, ((cell,), _) in zip(answer, found, strict=True):
                    near = {labels[f"{side} character"][cell] for side in ("left", "right")}
                    letters.append(1 + CHARACTERS.index(letter) in near)
    assert not letters or np.mean(letters) > 0.95  # an "i" may be too thin to be the one under a place


def test_a_question_of_no_task_is_not_pointed_at() -> None:
    with pytest.raises(ValueError, match="no task asks"):
        pointing.points("where is it?", "here", [[]])


def test_colors_have_the_names_that_they_were_drawn_by() -> None:
    rng = random.Random(0)
    for name in COLORS:
        for _ in range(50):
            assert color_name(asking.charts.tint(name, rng)) == name


def test_made_up_words_are_never_those_of_the_test_split() -> None:
    rng = random.Random(0)
    made = {mixing.new_word(rng) for _ in range(500)}
    assert not made & set(words.UNSEEN) and len(made) > 400 and all(3 <= len(word) <= 6 for word in made)
