"""Fixtures of the demo model: the training questions of easy-vqa, and a processor that knows their words."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def questions() -> list[Any]:
    """Every training question."""
    from opskip_compile.demo.easy_vqa import load_questions

    return load_questions("train")


@pytest.fixture(scope="module")
def processor(questions: list[Any]) -> Any:
    """A processor with their vocabulary."""
    from benchmarks.demo_model import tiny_model

    return tiny_model.build_processor(text for q in questions for text in (q.text, q.answer))
