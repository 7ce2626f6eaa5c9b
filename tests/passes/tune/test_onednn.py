"""Linear layers in oneDNN: the same result by another kernel, and only where it is made for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import opskip_compile as opskip
from opskip_compile import _compat
from opskip_compile.passes.tune import onednn as module
from opskip_compile.passes.tune.onednn import LINEAR, linear
from tests.helpers.caches import CACHE
from tests.helpers.families import FAMILIES, visual_mask

pytestmark = [
    pytest.mark.usefixtures("fresh"),
    pytest.mark.skipif(_compat.onednn_linear() is None, reason="this torch has no oneDNN"),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each product that oneDNN computed, on a processor that gains by it."""
    found: list[int] = []
    product: Any = _compat.onednn_linear()

    def recorder(x: Tensor, *args: Any) -> Tensor:
        found.append(x.shape[:-1].numel())
        return product(x, *args)

    monkeypatch.setattr(module, "onednn_linear", lambda: recorder)
    monkeypatch.setattr(_compat, "blas_is_slow", lambda: True)
    return found


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models count, too."""
    monkeypatch.setattr(module, "SMALLEST", 1)
    monkeypatch.setattr(module, "LEAST", 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "chosen"), [((63, 256), False), ((64, 256), True), ((2, 32, 256), True), ((256,), False)]
)
def test_operation(shape: tuple[int, ...], chosen: bool, bias: bool, calls: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, offset = (torch.randn(*size, generator=generator) for size in (shape, (256, 256), (256,)))
    args = (x, weight / 16, offset if bias else None)  # results are about 1
    torch.testing.assert_close(linear(*args), F.linear(*args), atol=1e-5, rtol=1e-5)
    assert calls == ([x.shape[:-1].numel()] if chosen else [])
    torch.library.opcheck(LINEAR, args, test_utils=("test_schema", "test_faketensor"))
    with FlopCounterMode(display=False) as counter:
        linear(*args)
    assert counter.get_total_flops() == 2 * x.numel() * 256


def test_rows_that_are_not_contiguous(any_size: None) -> None:
    x, weight = torch.randn(32, 12).t(), torch.randn(24, 32)
    torch.testing.assert_close(linear(x, weight, None), F.linear(x, weight), atol=1e-5, rtol=1e-5)


def test_no_rows(any_size: None) -> None:
    assert linear(torch.randn(2, 0, 32), torch.randn(24, 32), None).shape == (2, 0, 24)


def results(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    out = model(**inputs)
    return [out.logits, *(t for layer in out[CACHE].layers for t in (layer.keys, layer.values))]


@pytest.mark.parametrize("lower", ["eager", "inductor"])
@pytest.mark.parametrize("name", ["qwen3_vl", "internvl"])
def test_decoders(name: str, lower: str, calls: list[int], any_size: None) -> None:
    family = FAMILIES[name]
    model, inputs = family.build(3), family.inputs(((9, 5), (10, 4)))
    with torch.no_grad():
        with opskip.oracle(model, opskip.Schedule.from_spec("silent:1 attend:2"), visual_mask(inputs)):
            want = results(model, inputs)
        opskip.compile(model, "silent:1 attend:2", options={"lower": lower})
        got = results(model, inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=0)
    report = opskip.last_report()
    # Seven linear layers in each of three layers.
    assert {done.name: done.changed for done in report.passes}["onednn"] == 21
    assert len(calls) == 21
    kept, every = int((~visual_mask(inputs)).sum(1).max()), inputs["input_ids"].shape[1]
    # Queries, outputs and three of the FFN in layer 1, the FFN of layer 2. Keys and values are of all rows.
    assert (calls.count(2 * kept), calls.count(2 * every)) == (8, 13)
    assert not report.remaining()


def test_a_diff_goes_without(calls: list[int], any_size: None) -> None:
    family = FAMILIES["qwen3_vl"]
    model = family.build(2)
    opskip.compile(model, "silent:1", options={"lower": "eager"})
    with torch.no_grad():
        model(**family.inputs(((9, 5),)))
    assert calls
    assert "opskip.linear" not in str(opskip.last_report().diff().operator("0.ffn"))


def bfloat16(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.to(torch.bfloat16)
    return {name: x.to(torch.bfloat16) if x.is_floating_point() else x for name, x in inputs.items()}


def weights_in_another_order(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    for part in model.modules():
        if isinstance(part, torch.nn.Linear):
            part.weight = torch.nn.Parameter(part.weight.detach().t().contiguous().t())
    return inputs


def as_it_is(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return inputs


@pytest.mark.parametrize(
    ("how", "change"),
    [
        ("switched off", as_it_is),
        ("nothing skipped", as_it_is),
        ("gradients", as_it_is),
        ("autocast", as_it_is),
        ("no oneDNN", as_it_is),
        ("other processor", as_it_is),
        ("other type", bfloat16),
        ("other order", weights_in_another_order),
    ],
)
def test_where_linear_stays(
    how: str, change: Callable[..., Any], calls: list[int], any_size: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "no oneDNN":
        monkeypatch.setattr(module, "onednn_linear", lambda: None)
    if how == "other processor":
        monkeypatch.setattr(_compat, "blas_is_slow", lambda: False)
    family = FAMILIES["qwen3_vl"]
    model = family.build(2)
    inputs = change(model, family.inputs(((9, 5),)))
    schedule = "none" if how == "nothing skipped" else "silent:1"
    opskip.compile(model, schedule, options={"lower": "eager", "onednn": how != "switched off"})
    with torch.set_grad_enabled(how == "gradients"), torch.autocast("cpu", torch.bfloat16, how == "autocast"):
        model(**inputs)
    assert opskip.last_report().rewritten == (how != "nothing skipped")
    assert calls == []
    assert {done.name: done.changed for done in opskip.last_report().passes}.get("onednn", 0) == 0


def test_small_weights_stay(calls: list[int]) -> None:
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.build(2), family.inputs(((9, 5),))
    opskip.compile(model, "silent:1", options={"lower": "eager"})
    with torch.no_grad():
        model(**inputs)
    assert opskip.last_report().rewritten
    assert calls == []


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        ({"sse4a": True, "avx512_f": True}, True),
        ({"sse4a": True, "avx512_f": False}, False),
        ({"sse4a": False, "avx512_f": True}, False),
        ({"architecture": "arm64"}, False),
    ],
)
def test_processors(capabilities: dict[str, Any], slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert _compat.blas_is_slow.__wrapped__() == slow
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not _compat.blas_is_slow.__wrapped__()
