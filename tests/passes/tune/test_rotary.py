"""Rotary tables that every layer reads are kept; nothing else is, and no value changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import opskip_compile as opskip
from opskip_compile.passes.runtime import SHARED
from opskip_compile.passes.tune.rotary import share_rotary_tables
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.graphs import capture


def two_readers(h: Tensor, p: Tensor) -> Tensor:
    cos = p.cos() * 1.0
    return h * cos + h.relu() * cos


def one_reader(h: Tensor, p: Tensor) -> Tensor:
    return h * p.cos()


def of_the_stream(h: Tensor, p: Tensor) -> Tensor:
    cos = h.cos()
    return cos * p + cos.relu()


@pytest.mark.parametrize(("function", "copies"), [(two_readers, 1), (one_reader, 0), (of_the_stream, 0)])
def test_only_shared_tables_are_kept(function: Callable[..., Tensor], copies: int) -> None:
    h, p = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    gm = capture(function, h, p)
    root = next(node for node in gm.graph.nodes if node.op == "placeholder" and "h" in node.name)
    assert share_rotary_tables(gm.graph, root) == copies
    gm.recompile()
    result = gm(*(h if node is root else p for node in gm.graph.nodes if node.op == "placeholder"))
    assert torch.equal(result[0] if isinstance(result, tuple) else result, function(h, p))
    for copy in (node for node in gm.graph.nodes if node.target is SHARED):
        assert len(copy.users) == 2
        assert list(copy.args[0].users) == [copy]


@pytest.mark.parametrize("shared", [True, False])
def test_option(shared: bool) -> None:
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.build(2), family.inputs()
    torch._dynamo.reset()
    with torch.no_grad():
        with opskip.oracle(model, opskip.Schedule.from_spec("silent:1"), visual_mask(inputs)):
            want = model(**inputs).logits
        opskip.compile(model, "silent:1", options={"lower": "eager", "share_rotary": shared})
        got = model(**inputs).logits
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    changed = {done.name: done.changed for done in opskip.last_report().passes}
    assert changed.get("share_rotary", 0) == (2 if shared else 0)
