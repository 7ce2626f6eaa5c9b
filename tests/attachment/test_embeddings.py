"""A prompt given as embeddings, with pixels: the rows of image tokens are those that hold their token's embedding."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.own_decoder import EAGER

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:0-1"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_as_with_token_ids(name: str) -> None:
    """Where transformers takes such a prompt at all."""
    family = FAMILIES[name]
    model, inputs = family.build(2), family.inputs()
    embedded = {key: value for key, value in inputs.items() if key != "input_ids"}
    embedded["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"])
    try:
        dense = model(**embedded).logits
    except Exception as error:
        pytest.skip(f"transformers' own model does not take embeddings with pixels: {error}")
    same = torch.allclose(dense, model(**inputs).logits)
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = model(**embedded).logits
    opskip.compile(model, SPEC, options=EAGER)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        got = model(**embedded).logits
    torch.testing.assert_close(got, want)
    assert opskip.last_report().skipped
    if same:
        torch.testing.assert_close(got, model(**inputs).logits)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_generate(name: str) -> None:
    """Since transformers 5.23 it encodes the pictures itself, and hands no pixels on."""
    family = FAMILIES[name]
    model, inputs = family.build(2), family.inputs()
    rest: dict[str, Any] = {key: value for key, value in inputs.items() if key != "input_ids"}
    rest["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"])

    def first(given: dict[str, Any]) -> Tensor:
        asked: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "output_logits": True}
        return model.generate(**given, **asked, return_dict_in_generate=True).logits[0]  # type: ignore[no-any-return]

    try:
        dense = first(rest)
    except Exception as error:
        pytest.skip(f"transformers' own generate does not take embeddings with pixels: {error}")
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = first(rest)
    opskip.compile(model, SPEC, options=EAGER)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        got = first(rest)
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, dense)
    assert opskip.last_report().skipped
