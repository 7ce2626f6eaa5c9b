"""easy-VQA, the published data set: one shape, thirteen answers, its own images, questions and test split.

Calibration questions are cut off from the training split by image, so no calibration image is ever trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image

from benchmarks.vqa.base import CANVAS, GENERATED, Example, Split, Task
from opskip_compile.demo.easy_vqa import Question, load_questions
from opskip_compile.models.images import load_image

NAME = "easy_vqa"
COLORS = ("black", "gray", "red", "blue", "green", "yellow", "teal", "brown")
SHAPES = ("circle", "rectangle", "triangle")


@cache
def questions() -> Mapping[Split, tuple[Question, ...]]:
    """The questions of the three splits, each in the order of the package."""
    given = load_questions("train")
    kept = _calibration_images(given)
    calibration = [q for q in given if q.image_id in kept]
    return {
        "train": tuple(q for q in given if q.image_id not in kept),
        "calibration": tuple(calibration[: GENERATED["calibration"]]),
        "test": tuple(load_questions("test")),
    }


def _calibration_images(given: list[Question]) -> set[int]:
    """Images in the order of a hash of their number, until they have enough questions."""
    counts: dict[int, int] = {}
    for q in given:
        counts[q.image_id] = counts.get(q.image_id, 0) + 1
    kept: set[int] = set()
    asked = 0
    for image in sorted(counts, key=lambda number: hashlib.sha256(f"{NAME}/{number}".encode()).digest()):
        if asked >= GENERATED["calibration"]:
            break
        kept.add(image)
        asked += counts[image]
    return kept


def make(split: Split, index: int) -> Example:
    """One question of the package; the 64 x 64 image is enlarged to the canvas."""
    q = questions()[split][index]
    image = load_image(q.image_path).resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)
    words = [
        "{color}" if word in COLORS else "{shape}" if word in SHAPES else word for word in q.text.rstrip("?").split()
    ]
    choices = next((pool for pool in (COLORS, SHAPES) if q.answer in pool), ("no", "yes"))
    return Example((np.array(image, dtype=np.uint8),), q.text, q.answer, " ".join(words) + "?", choices)


def sizes() -> Mapping[Split, int]:
    """How many questions each split has."""
    return {split: len(found) for split, found in questions().items()}


TASK = Task(NAME, "shape and colour of the only object (published data set)", make, sizes)
