"""The oracle itself, against a computation written by hand: it is what everything else is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.models.oracle import decoder_layers

WIDTH = 8
IMAGE = 7


class Attention(nn.Module):
    """Mixes rows by a mean over the rows so far; returns a tuple as transformers' attentions do."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.linear, self.flat = nn.Linear(WIDTH, WIDTH), flat

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        counts = torch.arange(1, x.shape[1] + 1)[:, None]
        out = self.linear(x.cumsum(1) / counts)
        return (out.flatten(0, 1) if self.flat else out), "weights"


class Layer(nn.Module):
    def __init__(self, flat: bool = False, ffn: str = "mlp") -> None:
        super().__init__()
        self.self_attn = Attention(flat)
        setattr(self, ffn, nn.Linear(WIDTH, WIDTH))
        self.ffn_name = ffn

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(x)[0].view_as(x)
        out = getattr(self, self.ffn_name)(x.flatten(0, 1) if self.self_attn.flat else x)
        return x + out.view_as(x)


class Model(nn.Module):
    def __init__(self, **layer: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(**layer) for _ in range(2))

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Nested(nn.Module):
    """A decoder whose layers lie deeper, next to lists of other kinds."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            inner = nn.Module()
            inner.layers = nn.ModuleList([Layer()])
            self.add_module(name, inner)
        self.plain = nn.Module()
        self.plain.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])


def by_hand(model: Model, x: Tensor, skipped: Mapping[tuple[int, str], Tensor]) -> Tensor:
    """DESIGN section 2, one row at a time: ``skipped`` gives the rows that an operator leaves as they are."""
    for i, layer in enumerate(model.layers):
        for kind in ("attention", "ffn"):
            if kind == "attention":
                out = layer.self_attn.linear(torch.stack([x[:, : r + 1].mean(1) for r in range(x.shape[1])], 1))
            else:
                out = getattr(layer, layer.ffn_name)(x)
            left = skipped.get((i, kind), torch.zeros(x.shape[:2], dtype=torch.bool))
            rows = [
                [x[b, r] if left[b, r] else x[b, r] + out[b, r] for r in range(x.shape[1])] for b in range(x.shape[0])
            ]
            x = torch.stack([torch.stack(row) for row in rows])
    return x


def run(model: nn.Module, spec: str, mask: Tensor | Callable[..., Tensor | None], *forwards: Any) -> list[Tensor]:
    with torch.no_grad(), opskip.oracle(model, opskip.Schedule.from_spec(spec), mask):
        return [model(**inputs) for inputs in forwards]


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-6)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 6, WIDTH)


MASK = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 1, 0]]).bool()
THROUGH = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]).bool()
SPECS = {
    "none": {},
    "transform:0": {(0, "attention"): MASK},
    "attend:1": {(1, "ffn"): MASK},
    "silent:1": {(1, "attention"): MASK, (1, "ffn"): MASK},
    "silent@through_visual:0": {(0, "attention"): THROUGH, (0, "ffn"): THROUGH},
    "transform@through_visual:0 attend:0-1": {(0, "attention"): THROUGH, (0, "ffn"): MASK, (1, "ffn"): MASK},
}


@pytest.mark.parametrize("flat", [False, True], ids=["rows", "flattened"])
@pytest.mark.parametrize("spec", list(SPECS))
def test_the_definition_by_hand(spec: str, flat: bool, x: Tensor) -> None:
    """Also where an operator returns batch and sequence in one dimension."""
    model = Model(flat=flat)
    want = by_hand(model, x, SPECS[spec])
    (got,) = run(model, spec, MASK, {"x": x})
    assert close(got, want)
    assert spec == "none" or not close(got, model(x))


def test_another_sequence_length_runs_dense(x: Tensor) -> None:
    model = Model()
    _, step = run(model, "silent:0-1", MASK, {"x": x}, {"x": x[:, :1]})
    assert close(step, model(x[:, :1]))


def test_a_callable_gives_the_mask_of_each_forward(x: Tensor) -> None:
    """Forwards of one length with different rows, and one without."""
    model = Model()

    def find(inputs: Mapping[str, Any]) -> Tensor | None:
        return None if inputs.get("ids") is None else inputs["ids"] == IMAGE

    ids = [MASK.int() * IMAGE, MASK.flip(1).int() * IMAGE, None]
    got = run(model, "silent:0", find, *({"x": x, "ids": each} for each in ids))
    for result, rows in zip(got, (MASK, MASK.flip(1), torch.zeros_like(MASK)), strict=True):
        assert close(result, by_hand(model, x, {(0, "attention"): rows, (0, "ffn"): rows}))
    assert not close(got[0], got[1])


def test_hooks_are_gone_afterwards_even_after_an_error(x: Tensor) -> None:
    model = Model()
    with pytest.raises(ZeroDivisionError), opskip.oracle(model, opskip.Schedule.from_spec("silent:0"), MASK):
        raise ZeroDivisionError
    assert close(model(x), by_hand(model, x, {}))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_layers_deeper_in_the_decoder_are_found() -> None:
    decoder = Nested("text")
    assert decoder_layers(decoder) is decoder.text.layers


def test_lists_of_a_vision_tower_do_not_count() -> None:
    decoder = Nested("text", "vision_tower")
    assert decoder_layers(decoder) is decoder.text.layers


@pytest.mark.parametrize("names", [(), ("first", "second")], ids=["none", "two"])
def test_no_list_or_two_of_them_is_an_error(names: tuple[str, ...]) -> None:
    with pytest.raises(opskip.OpSkipError, match=f"Nested has {len(names)} lists named 'layers'"):
        decoder_layers(Nested(*names))


def test_a_layer_without_the_module_is_an_error_that_names_what_there_is(x: Tensor) -> None:
    model = Model(ffn="unknown")
    with pytest.raises(opskip.OpSkipError, match="no module for its ffn, only self_attn, unknown"):
        run(model, "attend:0", MASK, {"x": x})
    (got,) = run(model, "transform:0", MASK, {"x": x})
    assert close(got, by_hand(model, x, {(0, "attention"): MASK}))


def test_a_schedule_of_another_depth_is_refused(x: Tensor) -> None:
    with pytest.raises(opskip.ScheduleError):
        run(Model(), "silent:5", MASK, {"x": x})
