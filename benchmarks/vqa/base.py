"""What a task is: a name, the visual evidence that it asks for, and a pure function from split and index to example.

Every example also says what its question would accept, so chance is known for each question and a reader never
has to guess it from the answers that happen to occur.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

CANVAS = 96
Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# "train" has no natural end in a generated task: the number only says how far an index may go.
GENERATED: Mapping[Split, int] = MappingProxyType({"train": 1_000_000, "calibration": 512, "test": 2_000})


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one or two images, each `(96, 96, 3)` uint8.

    `template` is the question with its slots open; `choices` are the answers that the question leaves open to
    somebody who can't see the images, the right one among them.
    """

    images: tuple[NDArray[np.uint8], ...]
    question: str
    answer: str
    template: str
    choices: tuple[str, ...]


def generated() -> Mapping[Split, int]:
    """The sizes of a generated task."""
    return GENERATED


@dataclass(frozen=True, slots=True)
class Task:
    """A named source of examples that can be pickled. `make(split, index)` must depend on its arguments only."""

    name: str
    evidence: str
    make: Callable[[Split, int], Example]
    sizes: Callable[[], Mapping[Split, int]] = generated

    def size(self, split: Split) -> int:
        """The number of examples in `split`; raises `ValueError` for another name."""
        if split not in SPLITS:
            raise ValueError(f"the splits are {', '.join(SPLITS)}, not {split!r}")
        return self.sizes()[split]

    def example(self, split: Split, index: int) -> Example:
        """Example `index` of `split`; raises `IndexError` past the end and for a negative index."""
        if not 0 <= index < self.size(split):
            raise IndexError(f"{self.name} has {self.size(split)} {split} examples, so no number {index}")
        return self.make(split, index)


def generator(task: str, split: Split, index: int) -> random.Random:
    """The random numbers of one example: from a hash of its three names, so no two examples share a seed."""
    digest = hashlib.sha256(f"opskip-vqa/1/{task}/{split}/{index}".encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def fill(template: str, **slots: str) -> str:
    """A template with its slots filled; `a {...}` becomes `an` before a vowel."""
    text = template
    for name, value in slots.items():
        if value[0] in "aeiou":
            text = text.replace(f" a {{{name}}}", f" an {{{name}}}")
    return text.format(**slots)


def score(prediction: str, answer: str) -> bool:
    """Exact match, but for case and the blanks around."""
    return prediction.strip().lower() == answer.strip().lower()
