"""FLOPs three ways: the formula from the config, the shapes of the rewritten graph, and torch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import opskip_compile as opskip
from opskip_compile.passes.analysis.flops import count_by_operator
from opskip_compile.passes.graph.sizes import PACKED, Prompt, Sizes
from tests.helpers.families import FAMILIES, ONE_IMAGE, UNEVEN
from tests.helpers.grabbed import Grabbed, grab
from tests.helpers.graphs import capture
from tests.helpers.releases import since_5_23
from tests.helpers.support import ZOO

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:2 transform:0 attend:1,3"
TOLERANCE = 1e-3

# A text decoder that `count_flops` knows by its config alone.
DECODERS = (*FAMILIES, "gemma3", "paligemma", "mistral3", "qwen2_vl")


def witnessed(which: fx.GraphModule, inputs: list[Any]) -> int:
    """What torch counts while the graph runs, with attention spelled out."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        which(*inputs[: len(which.graph.find_nodes(op="placeholder"))])
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", DECODERS)
def test_formula_graph_and_counter_agree(name: str) -> None:
    model, inputs = ZOO[name].build(4), ZOO[name].inputs(ONE_IMAGE)
    found: Grabbed = grab(model, inputs, SPEC)
    report = found.report
    assert report.prompt is not None
    rows, (visual,) = report.prompt.rows, report.prompt.visual
    formula = opskip.count_flops(model.config, visual_tokens=visual, text_tokens=rows - visual, schedule=SPEC)
    graph = opskip.count_flops(report)
    assert len(graph.operators) == len(formula.operators) == 8
    for mine, theirs in zip(graph.operators, formula.operators, strict=True):
        assert (mine.layer, mine.operator) == (theirs.layer, theirs.operator)
        assert mine.dense == pytest.approx(theirs.dense, rel=TOLERANCE)
        assert mine.skipped == pytest.approx(theirs.skipped, rel=TOLERANCE)
    assert witnessed(found.before, found.inputs) == pytest.approx(graph.dense, rel=TOLERANCE)
    assert witnessed(found.after, found.inputs) == pytest.approx(graph.skipped, rel=TOLERANCE)
    assert graph.cut > 0.2


@pytest.mark.parametrize("spec", [SPEC, "silent@through_visual:2-3 transform:0"])
def test_a_batch_counts_the_longest_of_its_elements(spec: str) -> None:
    found = grab(FAMILIES["qwen3_vl"].build(4), FAMILIES["qwen3_vl"].inputs(UNEVEN), spec)
    graph = opskip.count_flops(found.report)
    assert witnessed(found.before, found.inputs) == pytest.approx(graph.dense, rel=TOLERANCE)
    assert witnessed(found.after, found.inputs) == pytest.approx(graph.skipped, rel=TOLERANCE)
    assert graph.visual_tokens == 48


@since_5_23("experts are computed for every row")
def test_routed_experts_count_their_tokens() -> None:
    """Router, gate and up, down, by hand: 24 rows, 4 experts of width 32, 2 a token."""
    model, inputs = ZOO["qwen3_vl_moe"].build(), ZOO["qwen3_vl_moe"].inputs(((2, 4),))
    ffn = next(op for op in opskip.explain(model, inputs, "attend:1").operators if op.name == "1.ffn")
    each = 2 * 32 * 4 + 2 * (2 * 32 * 64 + 2 * 32 * 32)
    assert (ffn.flops_before, ffn.flops_after) == (24 * each, 8 * each)


def test_a_report_has_its_own_prompt_and_schedule() -> None:
    report = opskip.explain(FAMILIES["llava"].build(2), FAMILIES["llava"].inputs(), "silent:1")
    found = opskip.count_flops(report)
    assert (found.geometry, found.visual_tokens, found.text_tokens, found.num_layers) == (None, 16, 8, 2)
    assert "2 layers, 16 visual + 8 text rows" in str(found)
    assert found.to_dict()["dense"] == found.dense
    with pytest.raises(opskip.OptionError, match="a report has its own"):
        opskip.count_flops(report, visual_tokens=3)


def test_sizes_that_are_not_known_are_said() -> None:
    report = opskip.explain(FAMILIES["llava"].build(2), FAMILIES["llava"].inputs(((9,),)), "silent:1")
    with pytest.raises(opskip.OpSkipError, match=r"its sizes are not known \(no visual rows"):
        opskip.count_flops(report)


A, B, C = torch.randn(2, 3, 4), torch.randn(2, 4, 5), torch.randn(2, 3, 5)
PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "linear": (lambda a, b: torch.nn.functional.linear(a, b[0].T), (A, B)),
    "matmul": (lambda a, b: a @ b, (A, B)),
    "bmm": (torch.bmm, (A, B)),
    "addmm": (lambda a, b, c: torch.addmm(c[0], a[0], b[0]), (A, B, C)),
    "baddbmm": (lambda a, b, c: torch.baddbmm(c, a, b), (A, B, C)),
    "einsum": (lambda a, b: torch.einsum("bik,bkj->bij", a, b), (A, B)),
    "einsum-without-result": (lambda a, b: torch.einsum("bik, bkj", a, b), (A, B)),
    "nothing": (lambda a, b: a[:, :, :1] * 2 + b[:, :1, :1], (A, B)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_counts_as_torch_counts_it(name: str) -> None:
    fn, inputs = PRODUCTS[name]
    graph = capture(fn, *inputs).graph
    owners = {node.name: "it" for node in graph.nodes}
    counter = FlopCounterMode(display=False)
    with counter:
        fn(*inputs)
    assert count_by_operator(graph, owners, Sizes.of(graph, None)) == {"it": counter.get_total_flops()}


def test_attention_counts_every_query_with_every_key() -> None:
    """Grouped heads, another width of the values, a mask: nothing is free."""
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 6)
    mask = torch.ones(3, 7, dtype=torch.bool)

    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, value=v, attn_mask=mask, enable_gqa=True)

    graph = capture(fn, q, k, v, mask).graph
    owners = {node.name: "it" for node in graph.nodes}
    expected = 2 * prod(q.shape) * 7 + 2 * (2 * 4 * 3 * 6) * 7
    assert count_by_operator(graph, owners, Sizes.of(graph, None)) == {"it": expected}


@pytest.mark.parametrize("equation", ["...ik,...kj->...ij", "bik->bi"])
def test_what_can_not_be_counted_is_not_guessed(equation: str) -> None:
    operands = (A, B)[: 1 + equation.count(",")]
    graph = capture(lambda *x: torch.einsum(equation, *x), *operands).graph
    owners = {node.name: "it" for node in graph.nodes}
    assert count_by_operator(graph, owners, Sizes.of(graph, None)) is None


def test_kept_rows_of_a_batch() -> None:
    """Of 10 rows 4 and 6 are visual: the most demanding element decides, unless all are in one list."""
    prompt = Prompt(2, 10, (4, 6), (5, 8))
    assert prompt.kept("visual") == 6 and prompt.kept("through_visual") == 5
    assert prompt.kept("visual,keep=0.5") == 8
    assert prompt.kept(f"{PACKED}visual,keep=0.5") == 8 + 7
    assert prompt.kept(f"{PACKED}visual") == 6 + 4
