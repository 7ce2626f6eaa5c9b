"""Column "export": programs of a decoder, and what the compiler makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import opskip_compile as opskip
from tests.helpers.families import ONE_IMAGE, visual_mask
from tests.helpers.support.compiled import options
from tests.helpers.support.forms import Member, form
from tests.helpers.support.outcome import (
    ABSENT,
    DENSE,
    SPEC,
    Outcome,
    assert_equal,
    differ,
    measure,
)


@form("export", "torch.export of the decoder, then torch.compile of it")
def exported_decoder(family: Member) -> Outcome:
    return export(family, named=False)


@form("export", "torch.export of a decoder with mark_visual in it")
def exported_marked(family: Member) -> Outcome:
    return export(family, named=True)


class Head(nn.Module):
    """The decoder as a module of its own, from embedded rows to hidden states, and the rows in its code."""

    def __init__(self, decoder: nn.Module, named: bool) -> None:
        super().__init__()
        self.decoder, self.named = decoder, named

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.named:
            hidden = opskip.mark_visual(hidden, mask)
        return self.decoder(inputs_embeds=hidden, use_cache=False).last_hidden_state


def export(family: Member, named: bool) -> Outcome:
    inputs, model = family.inputs(ONE_IMAGE), family.build()
    mask = visual_mask(inputs)
    hidden = model.get_input_embeddings()(inputs["input_ids"]).detach()
    whole = Head(model.get_decoder(), named)
    try:
        program = torch.export.export(whole, (hidden, mask))
    except Exception as error:
        return Outcome(ABSENT, f"torch.export: {type(error).__name__}: {str(error).strip().splitlines()[0]}")

    if differ(program.module()(hidden.clone(), mask), whole(hidden.clone(), mask)) > 1e-4:
        return Outcome(ABSENT, "torch.export: the program, dense as it is, gives another result than the decoder")

    def call(run: Any) -> Sequence[Tensor]:
        return [(whole if run is model else run)(hidden.clone(), mask)]

    def install(model: nn.Module, spec: str) -> Any:
        return torch.compile(program.module(), backend="opskip", options=options(spec))

    return measure(model, call, mask, install=install)


@form("export", "torch.export of a compiled decoder")
def exported_after_compile(family: Member) -> Outcome:
    """The program is that of the model's own code."""
    inputs, model = family.inputs(ONE_IMAGE), family.build()
    arguments = (model.get_input_embeddings()(inputs["input_ids"]).detach(), visual_mask(inputs))
    whole = Head(model.get_decoder(), named=True)
    want = whole(*arguments)
    whole.compile(backend="opskip", options=options(SPEC))
    try:
        program = torch.export.export(whole, arguments)
    except Exception as error:
        return Outcome(ABSENT, f"torch.export: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
    assert_equal([program.module()(*arguments)], [want])
    return Outcome(DENSE, "torch.export takes the model's own code and calls no backend of torch.compile")
