"""The VQA tasks as a suite: fixed and separate splits, even answers, the blind baseline, export and sheet."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("easy_vqa")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from PIL import Image

from benchmarks.vqa import blind, export, sheet
from benchmarks.vqa.base import CANVAS, GENERATED, SPLITS, Example, Split, fill, generator, score
from benchmarks.vqa.tasks import TASKS, digits, easy, words
from benchmarks.vqa.vocabulary import WORDS
from opskip_compile.errors import OpSkipError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DRAWN: dict[Split, int] = {"train": 1_500, "calibration": 512, "test": 500}
GENERATED_TASKS = [name for name in TASKS if name != "easy_vqa"]
EVERY_TASK = pytest.mark.parametrize("name", list(TASKS))


def key(example: Example) -> bytes:
    """What makes two examples the same question to a model: the pixels and the words."""
    digest = hashlib.sha256(example.question.encode())
    for image in example.images:
        digest.update(image.tobytes())
    return digest.digest()


def digest(name: str, indices: Iterable[int] = range(12)) -> str:
    """A digest of the first examples of all splits."""
    found = hashlib.sha256()
    for split in SPLITS:
        for index in indices:
            example = TASKS[name].example(split, index)
            found.update(key(example) + example.answer.encode())
    return found.hexdigest()


@pytest.fixture(scope="module")
def drawn() -> dict[str, dict[Split, list[tuple[bytes, Example]]]]:
    """The first examples of every split, without their pixels but with the key that holds them."""

    def one(name: str, split: Split, index: int) -> tuple[bytes, Example]:
        e = TASKS[name].example(split, index)
        assert 1 <= len(e.images) <= 2
        for image in e.images:
            assert image.shape == (CANVAS, CANVAS, 3) and image.dtype == np.uint8
        return key(e), Example((), e.question, e.answer, e.template, e.choices)

    return {
        name: {split: [one(name, split, index) for index in range(count)] for split, count in DRAWN.items()}
        for name in TASKS
    }


Drawn = dict[str, dict[Split, list[tuple[bytes, Example]]]]


def test_there_are_ten_tasks_with_their_sizes() -> None:
    assert len(TASKS) == 10
    for name in GENERATED_TASKS:
        assert {split: TASKS[name].size(split) for split in SPLITS} == GENERATED
    real = {split: TASKS["easy_vqa"].size(split) for split in SPLITS}
    assert real == {"train": 38_060, "calibration": 512, "test": 9_673}
    assert GENERATED["train"] >= 100_000 and GENERATED["test"] >= 1_000


@EVERY_TASK
def test_the_last_example_is_there_and_the_one_after_it_is_not(name: str) -> None:
    for split in SPLITS:
        assert TASKS[name].example(split, TASKS[name].size(split) - 1).images
        for index in (-1, TASKS[name].size(split)):
            with pytest.raises(IndexError, match=split):
                TASKS[name].example(split, index)
    with pytest.raises(ValueError, match="calibration"):
        TASKS[name].size("validation")  # type: ignore[arg-type]


def test_another_process_draws_the_same_examples() -> None:
    script = (
        "import json; from tests.benchmarks import test_vqa_tasks as t; "
        "print(json.dumps({n: t.digest(n) for n in t.TASKS}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    command, root = [sys.executable, "-c", script], BENCHMARKS.parent
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(run.stdout.splitlines()[-1]) == {name: digest(name) for name in TASKS}


@EVERY_TASK
def test_an_example_depends_on_its_index_only(name: str) -> None:
    random.seed(1)
    first = digest(name, [3])
    random.seed(2)
    copy = pickle.loads(pickle.dumps(TASKS[name]))
    copy.example("train", 99).images[0][:] = 0  # nobody else sees what a reader does to its image
    assert digest(name, [3]) == first != digest(name, [4])


def test_every_name_of_an_example_is_part_of_its_seed() -> None:
    seeds = {generator(task, split, index).random() for task in TASKS for split in SPLITS for index in range(50)}
    assert len(seeds) == len(TASKS) * 3 * 50


@EVERY_TASK
def test_texts_and_answers_are_plain(name: str, drawn: Drawn) -> None:
    for _, e in (pair for split in SPLITS for pair in drawn[name][split]):
        assert e.question == e.question.lower().strip() and e.question.endswith("?") and "{" not in e.question
        assert e.answer == e.answer.lower().strip() and e.answer and len(e.answer) <= 10
        assert e.answer in e.choices and len(set(e.choices)) == len(e.choices) >= 2


@EVERY_TASK
def test_no_test_example_occurs_in_training_or_calibration(name: str, drawn: Drawn) -> None:
    keys = {split: [found for found, _ in drawn[name][split]] for split in SPLITS}
    assert not set(keys["test"]) & {*keys["train"], *keys["calibration"]}
    assert not set(keys["calibration"]) & set(keys["train"])
    assert len(set(keys["test"])) == len(keys["test"])


def test_splits_of_easy_vqa_share_no_image() -> None:
    images = {split: {q.image_path for q in found} for split, found in easy.questions().items()}
    assert not images["train"] & images["calibration"]
    assert not images["test"] & (images["train"] | images["calibration"])
    assert len(images["test"]) == 1_000 and len(images["calibration"]) > 30


def test_splits_of_the_digits_share_no_scan() -> None:
    dealt = [number for split in SPLITS for found in digits.numbers(split).values() for number in found]
    assert sorted(dealt) == list(range(1_797))
    pictures, target = digits.scans()
    assert len({scan.tobytes() for scan in pictures}) == 1_797
    for split, least in (("train", 100), ("calibration", 17), ("test", 50)):
        for digit, found in digits.numbers(split).items():
            assert len(found) >= least and (target[list(found)] == int(digit)).all()


def test_held_out_words_are_asked_for_in_the_test_split_only(drawn: Drawn) -> None:
    asked = {split: Counter(e.answer in words.UNSEEN for _, e in drawn["words"][split]) for split in SPLITS}
    assert asked["train"][True] == asked["calibration"][True] == 0
    assert 0.2 < asked["test"][True] / DRAWN["test"] < 0.3
    assert set(words.SEEN).isdisjoint(words.UNSEEN) and {*words.SEEN, *words.UNSEEN} == set(WORDS)
    assert all(3 <= len(word) <= 6 for word in WORDS)


@pytest.mark.parametrize("name", GENERATED_TASKS)
def test_answers_are_even(name: str, drawn: Drawn) -> None:
    """Among questions that leave the same answers open, each is as frequent as the others.

    Pairs that a question names itself ("the red one or the blue one") are compared by their order in it.
    """
    groups: dict[tuple[str, tuple[str, ...]], Counter[str]] = defaultdict(Counter)
    for _, e in drawn[name]["train"]:
        pair = len(e.choices) == 2
        told = ("first", "second")[e.choices.index(e.answer)] if pair else e.answer
        groups[e.template, ("first", "second") if pair else e.choices][told] += 1
    for (template, choices), answers in groups.items():
        total, count = answers.total(), len(choices)
        allowed = total / count + 5 * (total / count * (1 - 1 / count)) ** 0.5 + 3
        assert max(answers.values()) <= allowed, (template, answers.most_common(3))


def test_existence_is_exactly_balanced(drawn: Drawn) -> None:
    for split in SPLITS:
        answers = Counter(e.answer for _, e in drawn["existence"][split])
        assert answers == {"yes": DRAWN[split] // 2, "no": DRAWN[split] // 2}


@EVERY_TASK
def test_the_blind_baseline_stays_near_chance(name: str, drawn: Drawn) -> None:
    guesses = blind.Blind(e for _, e in drawn[name]["train"])
    found = blind.figures(guesses, [e for _, e in drawn[name]["test"]])
    best = max(found["blind_text"], found["blind_template"])
    if name == "easy_vqa":  # a published data set: its questions give two thirds away
        assert 0.6 < best < 0.72
    else:
        assert best <= found["chance"] + 0.05, found


def test_the_blind_baseline_finds_a_prior() -> None:
    def ask(color: str, answer: str) -> Example:
        return Example((), f"is it {color}?", answer, "is it {color}?", ("no", "yes"))

    told = [ask("red", "yes"), ask("red", "yes"), ask("blue", "no"), ask("red", "no")]
    guesses = blind.Blind(told)
    assert [guesses.from_text(ask(color, "")) for color in ("red", "blue", "green")] == ["yes", "no", "no"]
    found = blind.figures(guesses, told)
    assert (found["blind_text"], found["blind_template"], found["chance"]) == (0.75, 0.5, 0.5)


def test_the_readme_has_the_table_of_the_result_file() -> None:
    results = json.loads(blind.RESULT.read_text(encoding="utf-8"))
    readme = (BENCHMARKS / "vqa" / "README.md").read_text(encoding="utf-8")
    assert blind.table(results["results"]) in readme
    assert list(results["results"]) == list(TASKS)
    for name, row in results["results"].items():
        assert row["questions"] == TASKS[name].size("test")
        best = max(row["blind_text"], row["blind_template"])
        assert name == "easy_vqa" or best <= row["chance"] + 0.03


@pytest.mark.parametrize("name", ["comparison", "digits"])
def test_an_export_gives_the_examples_back(name: str, tmp_path: Path) -> None:
    export.main(["--task", name, "--split", "test", "--count", "12", "--out", str(tmp_path / "new" / "folder")])
    folder = tmp_path / "new" / "folder"
    lines = [json.loads(line) for line in (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 12
    named = []
    for index, line in enumerate(lines):
        example = TASKS[name].example("test", index)
        files = line["images"] if "images" in line else [line["image"]]
        assert ("images" in line) == (len(example.images) == 2) and len(files) == len(example.images)
        for file, image in zip(files, example.images, strict=True):
            assert (np.asarray(Image.open(folder / file)) == image).all()
        assert (line["prompt"], line["answer"], line["task"]) == (example.question, example.answer, name)
        named += files
    assert {file.name for file in folder.iterdir()} == {*named, "data.jsonl"}
    assert len(set(named)) == len(named)


def test_an_export_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="512"):
        export.export(TASKS["counting"], "calibration", 513, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OpSkipError, match="file"):
        export.export(TASKS["counting"], "test", 1, tmp_path / "file")
    with pytest.raises(SystemExit):
        export.main(["--task", "counting", "--count", "0", "--out", str(tmp_path / "none")])
    assert "so not 0" in capsys.readouterr().err


def test_the_sheet(tmp_path: Path) -> None:
    sheet.main(["--out", str(tmp_path / "sheet.png"), "--task", "charts", "--task", "comparison", "--count", "2"])
    assert Image.open(tmp_path / "sheet.png").size[0] == 2 * sheet.CELL
    example = TASKS["charts"].example("test", 0)
    page = np.asarray(sheet.sheet(["charts"], "test", 1))
    shown = page[sheet.HEAD : sheet.HEAD + 2 * CANVAS : 2, sheet.GAP : sheet.GAP + 2 * CANVAS : 2]
    assert (shown == example.images[0]).all()
    assert (BENCHMARKS / "vqa" / "sheet.png").stat().st_size < 300_000


def test_score_and_fill() -> None:
    assert score(" Red\n", "red") and not score("dark red", "red") and not score("", "red")
    assert fill("is there a {color} {shape}?", color="orange", shape="star") == "is there an orange star?"
    assert fill("is there a {color} {shape}?", color="red", shape="star") == "is there a red star?"
