"""Models that merge images in code that Dynamo does not compile: a bare torch.compile says which call skips."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.own_decoder import EAGER
from tests.helpers.support import ZOO

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.mark.parametrize("name", ["ovis2", "molmo2"])
def test_text_first_on_a_model_that_has_never_run(name: str) -> None:
    """Dynamo cuts the forward elsewhere then, and a graph of the vision tower need not have ``pixel_values``."""
    family = ZOO[name]
    fast = torch.compile(family.build(2), backend="opskip", options={"schedule": "silent:1", **EAGER})
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        fast(**family.inputs(((9,),)))
    with pytest.warns(opskip.NothingSkippedWarning, match=r"Call opskip_compile\.compile\(model\) instead"):
        fast(**family.inputs())


@pytest.mark.parametrize("name", ["ovis2", "molmo2"])
def test_a_bare_compile_that_can_not_see_the_rows_says_which_call_can(name: str) -> None:
    """Also where the decoder's code was compiled for text before; nothing is said of the text."""
    family, spec = ZOO[name], "silent:1"
    model, inputs, text = family.build(2), family.inputs(), family.inputs(((9,),))
    dense = model(**inputs).logits
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = model(**inputs).logits
    fast = torch.compile(model, backend="opskip", options={"schedule": spec, **EAGER})
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        fast(**text)
    with pytest.warns(opskip.NothingSkippedWarning, match=r"Call opskip_compile\.compile\(model\) instead"):
        got = fast(**inputs).logits
    assert (got - dense).abs().max() <= 1e-4 * dense.abs().max()
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        fast(**text)
        got = opskip.compile(model, spec, options=EAGER)(**inputs).logits
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert opskip.last_report().skipped == ("1.attention", "1.ffn")


def test_a_schedule_that_skips_nothing_needs_no_rows() -> None:
    family = ZOO["ovis2"]
    fast = torch.compile(family.build(2), backend="opskip", options={"schedule": "none", **EAGER})
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        fast(**family.inputs())


def test_text_after_an_image_whose_rows_are_known() -> None:
    """The pixels of a prompt are settled by the graph that skips its rows, and are not held against the next prompt."""
    family = FAMILIES["qwen2_5_vl"]
    model, text = family.build(2), family.inputs(((9,),))
    fast = torch.compile(model, backend="opskip", options={"schedule": "silent:0-1", **EAGER})
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        fast(**family.inputs())
        fast(**text)
    assert any(report.rewritten for report in opskip.reports())


def alone(form: str, model: nn.Module) -> None:
    """Compile the decoder of ``model`` and nothing else."""
    decoder, options = model.get_decoder(), {"schedule": "silent:1", **EAGER}
    if form == "opskip.compile":
        opskip.compile(decoder, options=options)
    elif form == "torch.compile":
        model.model.language_model = torch.compile(decoder, backend="opskip", options=options)
    else:
        decoder.forward = torch.compile(decoder.forward, backend="opskip", options=options)


@pytest.mark.parametrize("text_first", [False, True])
@pytest.mark.parametrize("form", ["opskip.compile", "torch.compile", "its forward"])
def test_a_decoder_compiled_alone_in_a_model_with_an_image(form: str, text_first: bool) -> None:
    """It gets embeddings alone, but the model that calls it has the pixels. Nothing is said of text, nor twice."""
    family = FAMILIES["llava"]
    model, inputs, text = family.build(2), family.inputs(), family.inputs(((9,),))
    dense = model(**inputs).logits
    alone(form, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        if text_first:
            model.generate(**text, max_new_tokens=3, do_sample=False)
    with pytest.warns(opskip.NothingSkippedWarning, match=r"compile\(model\) with the whole model.*mark_visual"):
        torch.testing.assert_close(model(**inputs).logits, dense)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        model(**inputs)
        model.generate(**text, max_new_tokens=3, do_sample=False)


def test_a_decoder_compiled_alone_that_is_to_skip_nothing() -> None:
    family = FAMILIES["llava"]
    model = family.build(2)
    opskip.compile(model.get_decoder(), "none", options=EAGER)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        model(**family.inputs())
