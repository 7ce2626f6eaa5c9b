"""Prompts that Dynamo does not compile run dense: it is said once for each model, and `last_report` tells."""

from __future__ import annotations

import os
import warnings
from typing import Any
from unittest import mock

import pytest
import torch

import opskip_compile as opskip
from tests.helpers.families import FAMILIES
from tests.helpers.own_decoder import EAGER, Decoder, visual

pytestmark = pytest.mark.usefixtures("fresh")
LENGTHS = range(4, 16)  # more than Dynamo's limit of eight


@pytest.mark.parametrize("way", ["decoder", "layers", "whole"])
def test_twelve_lengths_past_the_limit(way: str) -> None:
    family = FAMILIES["llava"]
    model = Decoder() if way == "whole" else family.build(2)
    opskip.compile(model, "silent:1", options=EAGER, dynamic=False, **({"regional": True} if way == "layers" else {}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for length in LENGTHS:
            if way == "whole":
                model(torch.randn(1, length, 16), visual(1, length, 1, 3))
            else:
                model(**family.inputs(((3, length),)))
    told = [str(w.message) for w in caught if w.category is opskip.NothingSkippedWarning]
    assert len(told) == 1, told
    assert "8 times" in told[0] and "recompile_limit" in told[0] and "dynamic=False" in told[0]
    report = opskip.last_report()
    assert not report.rewritten and "8 times" in report.reason


def test_it_is_said_for_each_model_and_not_below_the_limit() -> None:
    family = FAMILIES["llava"]
    for _ in range(2):
        model = opskip.compile(family.build(2), "silent:1", options=EAGER, dynamic=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error", opskip.NothingSkippedWarning)
            for length in LENGTHS[:8]:
                model(**family.inputs(((3, length),)))
        assert opskip.last_report().skipped
        with pytest.warns(opskip.NothingSkippedWarning, match="its limit"):
            model(**family.inputs(((3, LENGTHS[8]),)))
        with warnings.catch_warnings():
            warnings.simplefilter("error", opskip.NothingSkippedWarning)
            model(**family.inputs(((3, LENGTHS[0]),)))  # still compiled


def test_training_and_gradient_modes_have_the_limit_for_themselves() -> None:
    """Five lengths in each: twenty compiles of one decoder."""
    family = FAMILIES["llava"]
    model = opskip.compile(family.build(2), "silent:1", options=EAGER, dynamic=False)
    modes = (torch.enable_grad, torch.no_grad, torch.inference_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        for mode, training in [*((mode, False) for mode in modes), (torch.no_grad, True)]:
            model.train(training)
            for length in LENGTHS[:5]:
                with mode():
                    model(**family.inputs(((3, length),)))
    assert sum(bool(report.skipped) for report in opskip.reports()) == 20


@pytest.mark.parametrize("how", ["stance", "config", "environment"])
def test_dynamo_that_is_switched_off(how: str) -> None:
    family = FAMILIES["llava"]
    model, inputs = opskip.compile(family.build(2), "silent:1", options=EAGER), family.inputs()
    off: Any = torch.compiler.set_stance("force_eager") if how == "stance" else torch._dynamo.config.patch(disable=True)
    if how == "environment":
        off = mock.patch.dict(os.environ, {"TORCHDYNAMO_DISABLE": "1"})
    match = "set_stance" if how == "stance" else "switched off"
    with off, pytest.warns(opskip.NothingSkippedWarning, match=match):
        model(**inputs)
    assert not opskip.last_report().skipped
    model(**inputs)
    assert opskip.last_report().skipped
