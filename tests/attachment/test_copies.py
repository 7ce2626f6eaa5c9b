"""Copies of a compiled model: each is compiled for its own weights; a part that is copied alone is dense."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.own_decoder import EAGER, Decoder, visual

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:1"


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("called", [True, False], ids=["called before", "never called"])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_a_copy_skips_with_its_own_weights(name: str, how: str, called: bool) -> None:
    """What transformers hooks to LLaVA's vision tower in its first call can't be pickled, also where it is dense."""
    family = FAMILIES[name]
    model, inputs = family.build(2), family.inputs()
    if name == "llava" and called and how != "deepcopy":
        with pytest.raises(AttributeError, match="output_capturing_hook"):
            model(**inputs)
            COPIES[how](model)
        return
    opskip.compile(model, SPEC, options=EAGER)
    before = model(**inputs).logits if called else None
    twin = COPIES[how](model)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(0.9)
    with opskip.oracle(opskip.remove(COPIES[how](twin)), opskip.Schedule.from_spec(SPEC), visual_mask(inputs)) as plain:
        want = plain(**inputs).logits
    count = len(opskip.reports())
    got = twin(**inputs).logits
    torch.testing.assert_close(got, want)
    assert len(opskip.reports()[count:][-1].skipped) == 2
    if before is not None:
        assert torch.equal(model(**inputs).logits, before)
        assert not torch.allclose(got, before)


def test_each_can_be_taken_back_alone() -> None:
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.build(2), family.inputs()
    dense = model(**inputs).logits
    opskip.compile(model, SPEC, options=EAGER)
    skipping = model(**inputs).logits
    twin = copy.deepcopy(model)
    opskip.remove(model)
    assert torch.equal(model(**inputs).logits, dense)
    assert torch.equal(twin(**inputs).logits, skipping)
    opskip.remove(twin)
    assert torch.equal(twin(**inputs).logits, dense)
    for part in twin.modules():
        assert "forward" not in vars(part) and not part._forward_pre_hooks and not part._forward_hooks
    assert vars(twin).keys() == vars(family.build(2)).keys()


@pytest.mark.parametrize("first", ["copy", "original"])
def test_a_shallow_copy_shares_what_compile_did(first: str) -> None:
    """It shares the decoder: what is taken off one is taken off both, in either order."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    dense = model(**inputs).logits
    opskip.compile(model, SPEC, options=EAGER)
    twin = copy.copy(model)
    assert torch.equal(twin(**inputs).logits, model(**inputs).logits)
    assert not torch.equal(twin(**inputs).logits, dense)
    for each in (twin, model) if first == "copy" else (model, twin):
        opskip.remove(each)
        assert torch.equal(each(**inputs).logits, dense)
    twin.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("part", ["decoder", "layer", "inner model"])
@pytest.mark.parametrize("regional", [True, False])
def test_a_part_that_is_copied_alone_is_dense(part: str, regional: bool) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    taken: dict[str, Callable[[nn.Module], nn.Module]] = {
        "decoder": lambda model: model.get_decoder(),
        "layer": lambda model: model.get_decoder().layers[1],
        "inner model": lambda model: model.model,
    }
    opskip.compile(model, SPEC, options=EAGER, regional=regional)
    twin = copy.deepcopy(taken[part](model))
    assert sum(1 for _ in twin.parameters()) == sum(1 for _ in taken[part](model).parameters())
    other = opskip.remove(copy.deepcopy(model))
    for own, weight in zip(twin.parameters(), taken[part](other).parameters(), strict=True):
        assert torch.equal(own, weight) and own is not weight
    if part == "inner model":
        assert torch.equal(twin(**inputs).last_hidden_state, other.model(**inputs).last_hidden_state)
    elif part == "decoder":
        ids = torch.tensor([[4, 5, 6]])
        assert torch.equal(twin(input_ids=ids).last_hidden_state, other.get_decoder()(input_ids=ids).last_hidden_state)


@pytest.mark.parametrize("how", COPIES)
def test_a_model_that_is_compiled_whole(how: str) -> None:
    model, arguments = Decoder(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    opskip.compile(model, "silent:0", options=EAGER)
    want = model(*arguments)
    twin = COPIES[how](model)
    count = len(opskip.reports())
    assert torch.equal(twin(*arguments), want)
    assert len(opskip.reports()[count:][-1].skipped) == 2
    assert not torch.equal(opskip.remove(twin)(*arguments), want)
    assert torch.equal(model(*arguments), want)


def test_generate_with_a_copy() -> None:
    """A copy's `prepare_inputs_for_generation` is bound to the copy and has the class's signature."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    opskip.compile(model, SPEC, options=EAGER)
    twin = copy.deepcopy(model)
    assert twin.prepare_inputs_for_generation.model is twin
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        want, got = (each.generate(**inputs, max_new_tokens=3, do_sample=False) for each in (model, twin))
    assert torch.equal(got, want)
