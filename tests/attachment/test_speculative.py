"""Guessed tokens: prompt lookup and drafting models give the tokens of plain greedy decoding, with either skipped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import opskip_compile as opskip
from tests.helpers.families import FAMILIES
from tests.helpers.own_decoder import EAGER

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:2-3 transform:0 attend:1"
HOW = {"max_new_tokens": 10, "do_sample": False}
LOOKUP = {"prompt_lookup_num_tokens": 3}


def prompt(family: str) -> dict[str, Tensor]:
    """A prompt whose text repeats itself, so that a lookup finds something."""
    inputs = FAMILIES[family].inputs(((9, 9),))
    inputs["input_ids"][:, -8:] = torch.tensor([11, 12, 13, 14, 11, 12, 13, 14])
    return inputs


def tokens(model: Any, inputs: dict[str, Tensor], **more: Any) -> list[int]:
    found: list[int] = model.generate(**inputs, **HOW, **more)[0].tolist()
    return found


def skipping(model: Any, spec: str = SPEC) -> Any:
    return opskip.compile(copy.deepcopy(model), spec, prefill_only=True, options=EAGER)


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_guesses_do_not_change_the_tokens(family: str) -> None:
    model, inputs = FAMILIES[family].build(), prompt(family)
    drafter = skipping(model)
    dense, with_skips = tokens(model, inputs), skipping(model)
    skipped = tokens(with_skips, inputs)
    assert dense != skipped, "the schedule does not show"
    assert tokens(with_skips, inputs, **LOOKUP) == skipped
    assert tokens(with_skips, inputs, assistant_model=drafter) == skipped
    assert tokens(with_skips, inputs, assistant_model=copy.deepcopy(model)) == skipped
    # What a skipped drafter guesses is checked by the dense model: nothing is lost.
    assert tokens(model, inputs, assistant_model=drafter) == dense


def test_a_prefill_with_guesses_in_it_is_skipped() -> None:
    """The rows of the guesses come behind the prompt's, and are text."""
    model, inputs = FAMILIES["qwen3_vl"].build(), prompt("qwen3_vl")
    opskip.compile(model, SPEC, options=EAGER)
    tokens(model, inputs, **LOOKUP)
    report = next(report for report in reversed(opskip.reports()) if report.rewritten)
    assert len(report.skipped) == 6
    assert report.prompt is not None and report.prompt.rows >= inputs["input_ids"].shape[1]
