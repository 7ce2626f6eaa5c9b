"""The question templates of the easy-VQA training split, and the rule that answers them.

Templates are read off the training questions by replacing each colour or shape word with a slot. The
answering rule is checked against every given training answer before anything is trained on it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from opskip_compile.demo.easy_vqa import Question

COLORS = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
}
SHAPES = ("rectangle", "circle", "triangle")
_COLOR = re.compile(rf"\b({'|'.join(COLORS)})\b")
_SHAPE = re.compile(rf"\b({'|'.join(SHAPES)})\b")
_NEGATION = re.compile(r"\b(no|not)\b")


@dataclass(frozen=True, slots=True)
class Label:
    """What an image shows: one shape of one palette colour."""

    shape: str
    color: str


@cache
def answer(text: str, label: Label) -> str:
    """The answer that `label` implies for `text`."""
    if text.startswith("what"):
        return label.color if "color" in text else label.shape
    color, shape = _COLOR.search(text), _SHAPE.search(text)
    present = (color is None or color[1] == label.color) and (shape is None or shape[1] == label.shape)
    return "no" if present == negated(text) else "yes"


def negated(text: str) -> bool:
    """Whether a question or template asks for absence."""
    return _NEGATION.search(text) is not None


def templates(questions: Iterable[Question]) -> list[str]:
    """The distinct templates of `questions`, sorted, with the slots `{color}` and `{shape}`."""
    return sorted({_SHAPE.sub("{shape}", _COLOR.sub("{color}", q.text)) for q in questions})


def consistent_labels(questions: Iterable[Question]) -> dict[int, list[Label]]:
    """The labels of each image that reproduce all of its answers and fit what its questions presuppose."""
    given: dict[int, list[Question]] = {}
    for q in questions:
        given.setdefault(q.image_id, []).append(q)
    everything = [Label(shape, color) for shape in SHAPES for color in COLORS]
    return {
        image_id: [label for label in everything if all(_explains(label, q) for q in group)]
        for image_id, group in given.items()
    }


def _explains(label: Label, question: Question) -> bool:
    color, shape = _COLOR.search(question.text), _SHAPE.search(question.text)
    fits = (color is None or color[1] == label.color) and (shape is None or shape[1] == label.shape)
    presupposed = fits or not question.text.startswith("what")
    return presupposed and answer(question.text, label) == question.answer


def infer_labels(questions: Iterable[Question]) -> dict[int, Label]:
    """The label of every image whose questions leave only one; a contradiction raises `ValueError`."""
    candidates = consistent_labels(questions)
    if wrong := [image_id for image_id, labels in candidates.items() if not labels]:
        raise ValueError(f"no label explains the answers for the images {wrong[:5]}")
    return {image_id: labels[0] for image_id, labels in candidates.items() if len(labels) == 1}


def ask(forms: Sequence[str], label: Label, rng: random.Random) -> tuple[str, str]:
    """A fresh question about `label` and its answer; yes and no are equally likely."""
    form = rng.choice(forms)
    color, shape = label.color, label.shape
    if not form.startswith("what") and rng.random() < 0.5:
        color = rng.choice([c for c in COLORS if c != color])
        shape = rng.choice([s for s in SHAPES if s != shape])
    text = form.format(color=color, shape=shape)
    return text, answer(text, label)
