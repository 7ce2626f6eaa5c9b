"""The questions of easy-VQA, batches of them, and scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("easy_vqa")
pytest.importorskip("transformers")

from opskip_compile.demo.easy_vqa import Question, accuracy, agreement, batches, collate, load_questions
from opskip_compile.errors import OpSkipError
from opskip_compile.models.images import load_image
from opskip_compile.models.packaged.model import (
    DemoProcessor,
    encode_prompt,
    load_processor,
)


def test_sizes_of_the_splits(questions: list[Question]) -> None:
    assert (len(questions), len(load_questions("test"))) == (38_575, 9_673)


def test_collate_pads_on_the_left(questions: list[Question], processor: DemoProcessor) -> None:
    batch = sorted(questions[:40], key=lambda q: len(q.text))
    batch = [batch[0], batch[-1]]
    inputs = collate(batch, processor)
    pad = int((inputs["attention_mask"][0] == 0).sum())
    assert pad > 0 and inputs["attention_mask"][1].all()
    assert inputs["attention_mask"][0].tolist() == [0] * pad + [1] * (inputs["input_ids"].shape[1] - pad)
    assert (inputs["input_ids"][0, :pad] == processor.tokenizer.pad_token_id).all()
    assert inputs["input_ids"][:, -1].tolist() == [processor.token_id("?")] * 2


def test_scores() -> None:
    asked = [Question(0, Path(), "", answer) for answer in ("yes", "no", "red", "teal")]
    assert accuracy(["yes", "no", "red", "blue"], asked) == 0.75
    assert agreement(["yes", "no"], ["yes", "yes"]) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: load_questions("dev"), "train"),
        (lambda p: collate([], p), "at least one"),
        (lambda p: encode_prompt("", 64, p), "empty"),
        (lambda p: agreement(["yes"], []), "compare 1"),
        (lambda p: load_processor(Path("/nowhere")), "opskip-compile"),
        (lambda p: load_image(Path("/nowhere.png")), "cannot read"),
        (lambda p: list(batches([], p, 0)), "positive"),
    ],
)
def test_bad_input_is_one_clear_error(processor: DemoProcessor, call: Any, message: str) -> None:
    with pytest.raises(OpSkipError, match=message):
        call(processor)


def test_a_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(OpSkipError, match=r"pip install \"opskip-compile\[demo\]\""):
        load_questions("test")


def test_a_malformed_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["easy_vqa"], "get_test_image_paths", dict)
    with pytest.raises(OpSkipError, match=r"incomplete .* reinstall the demo"):
        load_questions("test")
