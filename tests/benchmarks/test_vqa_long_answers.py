"""The task with long answers: what it asks, what is taught, and how answers are counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.vqa import long_answers
from benchmarks.vqa.architectures import load
from benchmarks.vqa.long_answers import LONGEST, TASKS, WORDS, batch, by_place, read_answers, spelled, table


@pytest.fixture(scope="module")
def kit():  # type: ignore[no-untyped-def]
    return load("qwen3_vl")


@pytest.mark.parametrize(("forms", "least"), [(1, 20), (2, 45)])
def test_an_answer_is_a_whole_form(kit, forms: int, least: int) -> None:  # type: ignore[no-untyped-def]
    """Twenty tokens and more of each, and what they spell is the answer."""
    lengths, task = [], TASKS[forms]
    for index in range(40):
        example = task.example("test", index)
        words = example.answer.split()
        assert len(words) == WORDS * forms
        assert all(len({*words[i : i + WORDS : 2]}) == WORDS // 2 for i in range(0, len(words), WORDS))
        ids = spelled(kit, example.answer)
        lengths.append(len(ids))
        assert kit.tokenizer.decode(ids, skip_special_tokens=True) == example.answer
        again = task.example("test", index).images
        assert all(np.array_equal(one, other) for one, other in zip(example.images, again, strict=True))
        assert len(again) == forms
    assert min(lengths) >= least
    assert max(lengths) <= LONGEST * forms
    assert task.example("test", 0).answer != task.example("train", 0).answer


@pytest.mark.parametrize("forms", [1, 2])
def test_all_answers_of_a_batch_fit(kit, forms: int) -> None:  # type: ignore[no-untyped-def]
    for step in range(8):
        packed = batch(kit, 0, step, forms)
        assert len({int(element) for element, _, _ in packed.rows}) == long_answers.BATCH
        assert packed.inputs["input_ids"].shape == (long_answers.BATCH, 192 * forms)
    assert torch.equal(batch(kit, 0, 3).targets, batch(kit, 0, 3).targets)
    assert len(batch(kit, 0, 3).targets) != len(batch(kit, 0, 4).targets)


def test_facts_are_counted_by_their_place(tmp_path: Path) -> None:
    right = "a b c d e f g h"
    assert by_place([right, "a x c d e f g"], [right, right]) == [1, 0.5, 1, 1, 1, 1, 1, 0.5]
    assert by_place(["", "b a"], [right, right]) == [0.0] * WORDS
    lines = [
        {"about": {}},
        {"key": "none", "item": 1, "value": ["third"]},
        {"key": "none", "item": 0, "value": ["first", "second"]},
        {"key": "levels none", "item": 0, "value": [1, 2]},
        {"key": "half", "item": 0, "value": ["first", "second"]},
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_answers(tmp_path / "answers.jsonl", 3) == {"none": ["first", "second", "third"]}


def test_a_table_has_facts_beside_whole_answers() -> None:
    outcome = {"method": "fastv", "flops_cut": 0.5, "accuracy": 0.25, "runs": [{"spec": "x"}]}
    text = table({"outcomes": [outcome], "facts": {"x": [1.0, *[0.5] * 6, 0.0]}})
    assert text.splitlines()[-1] == "| fastv | 50.0% | 25.0% | 50.0% | 100.0% | 0.0% |"
