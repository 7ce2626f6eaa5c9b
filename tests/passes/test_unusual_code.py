"""FFNs written in ways that hide what they do to memory, each in a small decoder against the definition of skipping.

Every one of them came out wrong, crashed or ran dense at some time: names of a schema, parts of an ``out``, operators
that return their argument, layouts that a later view needs, functions that PyTorch writes in Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import opskip_compile as opskip
from opskip_compile.passes.ops import Call, Operation
from tests.helpers.entries import changed_entry

pytestmark = pytest.mark.usefixtures("fresh")
WIDTH, SEQUENCE = 16, 8
torch.manual_seed(0)
UP, DOWN = torch.randn(WIDTH, WIDTH) / 4, torch.randn(WIDTH, WIDTH) / 4
JOINT = torch.randn(WIDTH, 3 * WIDTH) / 4
Body = Callable[[Tensor], Tensor]

LIBRARY = torch.library.Library("opskip_unusual", "DEF")
LIBRARY.define("given_back(Tensor x) -> Tensor")
LIBRARY.impl("given_back", lambda x: x, "CompositeImplicitAutograd")


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,))


def attention(h: Tensor) -> Tensor:
    q, k, v = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (norm(h) @ JOINT).chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def decoder(h: Tensor, visual: Tensor, body: Body, skip: bool) -> Tensor:
    """Two layers; with ``skip`` by definition: the FFNs leave the visual rows out."""
    if not skip:
        h = opskip.mark_visual(h, visual)
    for _ in range(2):
        h = h + attention(h)
        update = body(norm(h) @ UP)
        h = h + (update.masked_fill(visual[..., None], 0) if skip else update)
    return norm(h)


def named_input(x: Tensor) -> Tensor:
    y = torch.resolve_conj(input=x)
    x.add_(1)
    return y @ DOWN


def named_stride(x: Tensor) -> Tensor:
    y = torch.as_strided(input=x, size=x.shape, stride=x.stride())
    x.mul_(2)
    return y @ DOWN


def named_in_place(x: Tensor) -> Tensor:
    y = x[:]
    torch.alpha_dropout_(input=x, p=1.0, train=True)
    return y @ DOWN + 1


def parts_of_out(x: Tensor) -> Tensor:
    a, b = torch.empty(x.shape), torch.empty(x.shape, dtype=torch.int64)
    values, _ = torch.sort(x, dim=-1, out=(a, b))
    values.mul_(2)
    return a @ DOWN


def unsafe_view(x: Tensor) -> Tensor:
    y = torch.ops.aten._unsafe_view.default(x, list(x.shape))
    y.add_(1)
    return x @ DOWN


def given_back(x: Tensor) -> Tensor:
    y = torch.ops.opskip_unusual.given_back(x)
    x.mul_(2)
    return y @ DOWN


def out_by_position(x: Tensor) -> Tensor:
    buffer = x.sum(-1) * 0 + 1
    y = buffer.unsqueeze(-1).expand(-1, -1, WIDTH)
    torch.norm(x, 2, -1, False, buffer)
    return (x * y) @ DOWN


def out_is_the_operand(x: Tensor) -> Tensor:
    torch.mul(x, x.sigmoid(), out=x)
    return x @ DOWN


def layout_of_a_view(x: Tensor) -> Tensor:
    y = x.transpose(1, 2) * 1
    y.masked_fill_(y > 1, 0.0)
    return y.transpose(1, 2).view(x.shape[0], -1).view(x.shape) @ DOWN


def more_dimensions_than_the_index(x: Tensor) -> Tensor:
    table = torch.zeros(2, WIDTH)
    table[torch.tensor(0)] = torch.ones(1, 1, WIDTH)[0]
    return (x + table[0]) @ DOWN


def bias_for_every_row(x: Tensor) -> Tensor:
    return F.linear(x, DOWN, torch.arange(SEQUENCE * WIDTH).view(SEQUENCE, WIDTH) / 100)


def in_place_comparison(x: Tensor) -> Tensor:
    y = x.clone()
    y.gt_(0)
    return (y + y) @ DOWN


def gated_by_python(x: Tensor) -> Tensor:
    return F.glu(torch.cat((x, x), -1)) @ DOWN


def squeezed_by_name(x: Tensor) -> Tensor:
    return x.unsqueeze(2).squeeze(dim=2) @ DOWN


BODIES: tuple[Body, ...] = (
    named_input,
    named_stride,
    named_in_place,
    parts_of_out,
    unsafe_view,
    given_back,
    out_by_position,
    out_is_the_operand,
    layout_of_a_view,
    more_dimensions_than_the_index,
    bias_for_every_row,
    in_place_comparison,
    gated_by_python,
    squeezed_by_name,
)


def compare(body: Body, batch: int) -> opskip.Report:
    """The compiled decoder gives the definition's result."""
    h = torch.randn(batch, SEQUENCE, WIDTH)
    visual = torch.zeros(batch, SEQUENCE, dtype=torch.bool)
    visual[:, 1:5] = True
    visual[-1, 1] = False
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda h, visual: decoder(h, visual, body, skip=False),
        backend="opskip",
        options={"schedule": "attend:0,1", "lower": "eager"},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        got = compiled(h.clone(), visual)
    torch.testing.assert_close(got, decoder(h.clone(), visual, body, skip=True), rtol=0, atol=1e-4)
    report = opskip.last_report()
    assert report.skipped == ("0.ffn", "1.ffn")
    return report


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_equals_the_definition(body: Body, batch: int) -> None:
    compare(body, batch)


def test_what_is_left_in_full_is_named_behind_a_barrier() -> None:
    report = compare(gated_by_python, 2)
    assert report.remaining()
    assert {stop.operation for stop in report.stops} == {"glu"}


def test_a_name_for_all_that_is_left_still_moves_the_selection() -> None:
    assert not compare(squeezed_by_name, 2).stops


def broken(call: Call, *_: object) -> object:
    raise KeyError("a mistake")


@pytest.mark.parametrize(("name", "field"), [("silu", "rows"), ("view", "resize"), ("matmul", "flops")])
def test_a_mistake_of_an_entry_costs_one_operation(name: str, field: str) -> None:
    """Not the graph: its operators are still skipped, and right."""

    def body(x: Tensor) -> Tensor:
        return F.silu(x.view(x.shape[0], x.shape[1], 2, -1)).flatten(2) @ DOWN

    assert field in Operation.__dataclass_fields__
    with changed_entry(name, **{field: broken}):
        report = compare(body, 2)
    assert any("a mistake" in stop.reason for stop in report.stops) == (field != "flops")
    assert (report.flops_before is None) == (field == "flops")
