"""The backend in the compile_config of `generate`: transformers compiles decode steps alone, and a user is told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from transformers.generation import CompileConfig

import opskip_compile as opskip
from tests.helpers.families import FAMILIES
from tests.helpers.own_decoder import EAGER

pytestmark = pytest.mark.usefixtures("fresh")
FAMILY = FAMILIES["llava"]


def generated(model: nn.Module, backend: Any = "opskip", spec: str = "silent:0-1") -> torch.Tensor:
    options = {"schedule": spec, **EAGER} if backend != "eager" else None
    config = CompileConfig(backend=backend, mode=None, options=options)
    config._compile_all_devices = True  # as on an accelerator
    more = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static", "compile_config": config}
    return model.generate(**FAMILY.inputs(), **more)


def test_it_is_said_once_with_the_call_that_skips() -> None:
    dense, model = generated(FAMILY.build(2), "eager"), FAMILY.build(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(generated(model), dense)
        assert torch.equal(generated(model), dense)
    said = [str(w.message) for w in caught if w.category is opskip.NothingSkippedWarning]
    assert len(said) == 1
    assert "decode steps only" in said[0]
    assert "opskip_compile.compile(model)" in said[0]


@pytest.mark.parametrize("how", ["opskip.compile", "model.compile", "none"])
def test_nothing_is_said_where_prompts_are_compiled_or_nothing_is_asked_for(how: str) -> None:
    model = FAMILY.build(2)
    if how == "opskip.compile":
        opskip.compile(model, "silent:0-1", options=EAGER)
    elif how == "model.compile":
        model.compile(backend="opskip", options={"schedule": "silent:0-1", **EAGER})
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        generated(model, spec="none" if how == "none" else "silent:0-1")
    assert any(report.rewritten for report in opskip.reports()) == (how != "none")
