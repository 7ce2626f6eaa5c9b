"""The questions of easy-VQA, batches of them, and the two scores of their answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from opskip_compile.errors import OpSkipError
from opskip_compile.models.images import load_image
from opskip_compile.models.optional import INSTALL_HINT, require
from opskip_compile.models.packaged.model import DemoProcessor, encode

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image; `answer` is a single lower-case word."""

    image_id: int
    image_path: Path
    text: str
    answer: str


def load_questions(split: Split) -> list[Question]:
    """All questions of a split, in the order of the package: 38,575 for train and 9,673 for test."""
    if split not in ("train", "test"):
        raise OpSkipError(f"easy-VQA has the splits 'train' and 'test', not {split!r}")
    package = require("easy_vqa")
    try:
        texts, answers, image_ids = getattr(package, f"get_{split}_questions")()
        paths = getattr(package, f"get_{split}_image_paths")()
        questions = [
            Question(int(image_id), Path(paths[image_id]), str(text), str(answer))
            for text, answer, image_id in zip(texts, answers, image_ids, strict=True)
        ]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise OpSkipError(f"the installed easy_vqa package is incomplete ({error!r}); re{INSTALL_HINT}") from error
    if not questions:
        raise OpSkipError(f"the installed easy_vqa package has no {split} questions; re{INSTALL_HINT}")
    return questions


def collate(questions: Sequence[Question], processor: DemoProcessor) -> dict[str, Tensor]:
    """As `encode`, of questions whose images are read from their files."""
    return encode([load_image(q.image_path) for q in questions], [q.text for q in questions], processor)


def batches(
    questions: Sequence[Question], processor: DemoProcessor, size: int
) -> Iterator[tuple[Sequence[Question], dict[str, Tensor]]]:
    """Consecutive batches of at most `size` questions, each with its collated inputs."""
    if size < 1:
        raise OpSkipError(f"the batch size must be positive, not {size}")
    for start in range(0, len(questions), size):
        part = questions[start : start + size]
        yield part, collate(part, processor)


def accuracy(predictions: Sequence[str], questions: Sequence[Question]) -> float:
    """Share of `predictions` that equal the answers of `questions`."""
    return agreement(predictions, [question.answer for question in questions])


def agreement(first: Sequence[str], second: Sequence[str]) -> float:
    """Share of positions at which two lists of answers are equal; both need the same, positive length."""
    if len(first) != len(second) or not first:
        raise OpSkipError(f"cannot compare {len(first)} answers with {len(second)}")
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
