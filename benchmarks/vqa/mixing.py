"""Which examples training and its checks draw: never the calibration or test split, and always from a seed.

The last hundredth of each generated task's training indices is kept apart for the accuracies in the log; of easy-VQA
it is the questions about a twelfth of the images.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache

from benchmarks.vqa.architectures import Kit
from benchmarks.vqa.asking import Pair, affirmative, questions, spelled
from benchmarks.vqa.draw import Mark
from benchmarks.vqa.facts import cell_labels, easy_labels, observe, word_scene
from benchmarks.vqa.packing import Packed, Sample, pack
from benchmarks.vqa.pointing import Point, pointed
from benchmarks.vqa.tasks import TASKS, comparison, easy, words

KEPT_APART = 10_000
CHECKS = (*TASKS, "new words")  # the tasks, and the reading task with words that aren't words
PAIRS = "comparison of two"  # two images need a packing of their own


@cache
def _easy_indices(apart: bool) -> list[int]:
    asked = easy.questions()["train"]
    known = easy_labels()
    return [i for i, q in enumerate(asked) if (q.image_id % 12 == 0) == apart and str(q.image_path) in known]


def index(task: str, rng: random.Random, apart: bool = False) -> int:
    """A training index of a task, or one of those kept apart."""
    if task == easy.NAME:
        return rng.choice(_easy_indices(apart))
    size = TASKS[task].size("train")
    return rng.randrange(size - KEPT_APART, size) if apart else rng.randrange(size - KEPT_APART)


def new_word(rng: random.Random) -> str:
    """Three to six letters that often follow each other so; never one of the words kept for the test split."""
    while True:
        length = rng.randint(3, 6)
        if rng.random() < 0.3:
            word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=length))
        else:
            word = rng.choice(words.SEEN)[:1]
            while len(word) < length:
                known = [seen[at + 1] for seen in words.SEEN for at in range(len(seen) - 1) if seen[at] == word[-1]]
                word += rng.choice(known or ["a"])
        if word not in words.UNSEEN:
            return word


def encode(
    pairs: Sequence[Pair], task: str, kit: Kit, record: Sequence[Sequence[Mark]] | None = None
) -> list[tuple[list[int], list[int], list[Point]]]:
    """Questions and answers as token ids, with where to look if a record of the images is given."""
    found = []
    for text, reply in pairs:
        where = pointed(task, text, reply, record) if record else []
        found.append((kit.question(text), kit.answer(reply, spelled(text, task)), where))
    return found


def draw(task: str, kit: Kit, rng: random.Random, count: int, negations: bool = True, new: float = 0.5) -> Sample:
    """A training sample with the question of the task first; `new` is the share of made-up words in the reading task.

    The task `comparison` gives those with one image, `PAIRS` those with two.
    """
    name = comparison.NAME if task == PAIRS else task
    if task == words.NAME and rng.random() < new:
        picture, marks = word_scene([new_word(rng) for _ in range(rng.randint(1, 3))], rng)
        record: list[list[Mark]] = [marks]
        pictures, pairs = (picture,), questions(task, record, rng, count)
    else:
        example, record = observe(name, "train", index(name, rng))
        while name == comparison.NAME and len(example.images) != 1 + (task == PAIRS):
            example, record = observe(name, "train", index(name, rng))
        pictures, own = example.images, (example.question, example.answer)
        pairs = [own, *(pair for pair in questions(name, record, rng, count) if pair != own)]
    if not negations:
        pairs = affirmative(pairs) or pairs[:1]
    return Sample(pictures, encode(pairs, name, kit, record), [cell_labels(marks) for marks in record], task)


def batch(kit: Kit, seed: int, step: int, weights: Mapping[str, float], settings: Mapping[str, int]) -> Packed:
    """The packed batch of one step, a function of its arguments only."""
    rng = random.Random(f"{seed}-{step}")
    tasks = rng.choices(list(weights), list(weights.values()), k=settings["batch"])
    negations = step >= settings["affirmative"]
    if tasks[0] == PAIRS:
        samples = [draw(PAIRS, kit, rng, 6, negations) for _ in range(settings["batch"] // 2)]
        return pack(samples, kit, settings["pair_rows"])
    single = {task: weight for task, weight in weights.items() if task != PAIRS}
    tasks = [task if task != PAIRS else rng.choices(list(single), list(single.values()))[0] for task in tasks]
    return pack([draw(task, kit, rng, 14, negations) for task in tasks], kit, settings["rows"])


def held_out(check: str, kit: Kit, count: int) -> list[Sample]:
    """Samples of one task that training never sees, each with its own question only."""
    rng = random.Random(f"held-out-{check}")
    if check == "new words":
        samples = [draw(words.NAME, kit, rng, 6, new=1.0) for _ in range(count)]
        return [Sample(sample.pictures, sample.asked[:1], task=check) for sample in samples]
    found = []
    for _ in range(count):
        example = TASKS[check].example("train", index(check, rng, apart=True))
        asked = encode([(example.question, example.answer)], check, kit)
        found.append(Sample(example.images, asked, task=check))
    return found
