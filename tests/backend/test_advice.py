"""The advice of a warning fits how the model was compiled: nobody is told to do what they have done."""

from __future__ import annotations

import pytest

from opskip_compile.backend.advice import not_skipped
from opskip_compile.backend.settings import Settings
from opskip_compile.passes.refusal import Why

CALL = "Call opskip_compile.compile(model) instead of torch.compile"
REGIONAL = "opskip_compile.compile(model, regional=True)"


@pytest.mark.parametrize("why", [None, *Why])
@pytest.mark.parametrize("layer", [None, (0, 2)])
def test_who_has_called_compile_is_not_told_to_call_it(why: Why | None, layer: tuple[int, int] | None) -> None:
    text = not_skipped("a reason", why, Settings(in_place=True, layer=layer))
    assert "(a reason)" in text
    assert CALL not in text
    assert "torch.compile(model).generate()" not in text
    if layer is not None:
        assert REGIONAL not in text


@pytest.mark.parametrize(
    ("why", "in_place", "words"),
    [
        (None, False, CALL),
        (Why.PART, False, CALL),
        (Why.PART, True, REGIONAL),
        (Why.UNCERTAIN_LAYERS, True, REGIONAL),
        (None, True, "TORCH_LOGS=graph_breaks"),
        (Why.ENCODER, False, "No way to compile such a model"),
        (Why.CROSS_ATTENTION, True, "No way to compile such a model"),
        (Why.NOT_RESIDUAL, False, "last_report() names the nodes"),
    ],
)
def test_words(why: Why | None, in_place: bool, words: str) -> None:
    assert words in not_skipped("a reason", why, Settings(in_place=in_place))
