"""Under a dispatch mode, as people count FLOPs with, the rewritten graph is what runs; after it nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.own_decoder import EAGER, Decoder, visual

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:0-1"


class Names(TorchDispatchMode):
    """Which operations ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def flops(model: Any, inputs: dict[str, Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("first", ["mode", "call"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_flops_are_those_of_the_rewritten_graph(name: str, first: str, regional: bool) -> None:
    """The counter does not know the CPU's fused attention, so attention is plain products here."""
    family = FAMILIES[name]
    model, inputs = family.build(2), family.inputs()
    model.set_attn_implementation("eager")
    dense = flops(model, inputs)
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = model(**inputs).logits
    opskip.compile(model, SPEC, options=EAGER, regional=regional)
    if first == "call":
        torch.testing.assert_close(model(**inputs).logits, want)
    with FlopCounterMode(display=False) as counter:
        torch.testing.assert_close(model(**inputs).logits, want)
    saved = dense - counter.get_total_flops()
    count = len(opskip.reports())
    torch.testing.assert_close(model(**inputs).logits, want)  # and after it the model skips
    reports = [r for r in opskip.reports() if r.skipped]
    report = reports[-1]
    if first == "mode":
        assert any(r.skipped for r in opskip.reports()[count:])
    if not regional:
        assert saved == report.flops_before - report.flops_after > 0
    assert saved > 0
    assert flops(model, inputs) == dense - saved


def test_text_and_steps_under_a_mode_leave_the_model_compiled() -> None:
    family = FAMILIES["llava"]
    model, text = opskip.compile(family.build(2), SPEC, options=EAGER), {"input_ids": torch.tensor([[4, 5, 6]])}
    flops(model, text)
    flops(model, {"input_ids": torch.tensor([[4]])})
    count = len(opskip.reports())
    model(**text)
    model(input_ids=torch.tensor([[4]]))
    assert len(opskip.reports()) == count + 2


def test_two_modes_are_put_back_in_their_order() -> None:
    family = FAMILIES["llava"]
    model, inputs = opskip.compile(family.build(2), SPEC, options=EAGER), family.inputs()
    with Names() as outer, Names() as inner:
        model(**inputs)
        after = len(inner.seen)
        torch.ones(1) + 1
    assert outer.seen == inner.seen and len(inner.seen) > after
    assert any("index_select" in name or "gather" in name for name in inner.seen)


def test_an_error_under_a_mode_leaves_it_as_it_was() -> None:
    family = FAMILIES["llava"]
    model, inputs = opskip.compile(family.build(2), SPEC, options=EAGER), family.inputs()
    with Names() as names:
        with pytest.raises(IndexError):
            model(**{**inputs, "input_ids": inputs["input_ids"] + 10**6})
        before = len(names.seen)
        torch.ones(1) + 1
        assert len(names.seen) > before
    before = len(names.seen)
    torch.ones(1) + 1
    assert len(names.seen) == before
    model(**inputs)
    assert opskip.last_report().skipped


def test_a_model_that_is_compiled_whole() -> None:
    model, arguments = Decoder(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    with FlopCounterMode(display=False) as counter:
        model(*arguments)
    dense = counter.get_total_flops()
    opskip.compile(model, SPEC, options=EAGER)
    with FlopCounterMode(display=False) as counter:
        model(*arguments)
    assert counter.get_total_flops() < dense
    count = len(opskip.reports())
    model(*arguments)
    assert any(r.skipped for r in opskip.reports()[count:])
