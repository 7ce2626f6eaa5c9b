"""Attention without its mask: asked at run time, the same result whatever the mask turns out to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StaticCache

import opskip_compile as opskip
from opskip_compile.passes.tune import causal_attention as module
from opskip_compile.passes.tune.causal import ask_for_causal_masks
from opskip_compile.passes.tune.causal_attention import ATTEND, attend, is_causal
from tests.helpers.caches import CACHE
from tests.helpers.families import FAMILIES, ONE_IMAGE, visual_mask
from tests.helpers.graphs import capture

pytestmark = pytest.mark.usefixtures("fresh")
TWO = ((3, 5), (2, 4))


def tril(queries: int = 6, keys: int = 6) -> Tensor:
    return torch.ones(1, 1, queries, keys, dtype=torch.bool).tril()


def changed(mask: Tensor, *at: Any) -> Tensor:
    mask = mask.clone()
    mask[at] = ~mask[at]
    return mask


MASKS = {
    "causal": (tril(), True),
    "causal, two elements": (tril().expand(2, 1, 6, 6), True),
    "free places behind": (tril(6, 9), True),
    "one query": (tril(1, 1), True),
    "a free place is open": (changed(tril(6, 9), 0, 0, 5, 7), False),
    "padding on the left": (tril() & (torch.arange(6) > 1), False),
    "padding on the right": (tril() & (torch.arange(6) < 4), False),
    "sliding window": (tril() & ~tril().tril(-3), False),
    "open inside an image": (changed(tril(), 0, 0, 2, 3), False),
    "one element is padded": (torch.cat([tril(), tril() & (torch.arange(6) > 0)]), False),
    "filled cache": (torch.cat([torch.ones(1, 1, 6, 3).bool(), tril()], -1), False),
    "all open": (torch.ones(1, 1, 6, 6).bool(), False),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_attend_under_any_mask(name: str, heads: tuple[int, int], sdpa: list[bool]) -> None:
    mask, causal = MASKS[name]
    queries, keys = mask.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, n, rows, 8, generator=generator)
        for n, rows in ((heads[0], queries), (heads[1], keys), (heads[1], keys))
    )
    answer = is_causal(mask)
    assert answer.device.type == "cpu"
    assert bool(answer) is causal
    args = (q, k, v, mask, answer, 0.3, heads[0] != heads[1])
    got = attend(*args)
    assert sdpa == [causal]
    want = F.scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=heads[0] != heads[1])
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    torch.library.opcheck(ATTEND, args, test_utils=("test_schema", "test_faketensor"))


def test_top_left_mask_of_more_queries_than_keys() -> None:
    q, k = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 4, 8)
    mask = tril(6, 4)
    got = attend(q, k, k, mask, is_causal(mask), None, False)
    torch.testing.assert_close(got, F.scaled_dot_product_attention(q, k, k, mask))


@pytest.fixture
def sdpa(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each attention that `attend` ran was a causal one."""
    found: list[bool] = []

    class Recorder:
        @staticmethod
        def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Tensor:
            found.append(bool(kwargs.get("is_causal", False)))
            return F.scaled_dot_product_attention(*args, **kwargs)

    monkeypatch.setattr(module, "F", Recorder)
    return found


def results(model: Any, inputs: dict[str, Tensor], cache: Callable[[], Any]) -> list[Tensor]:
    out = model(**inputs, **{CACHE: cache()})
    return [out.logits, *(t for layer in out[CACHE].layers for t in (layer.keys, layer.values))]


@pytest.mark.parametrize(
    ("name", "layout", "padding", "causal", "static"),
    [
        ("qwen3_vl", ONE_IMAGE, "left", True, False),
        ("qwen3_vl", TWO, "left", False, True),
        ("qwen3_vl", TWO, "right", False, False),
        ("llava", ONE_IMAGE, "left", True, True),
        ("llava", TWO, "left", False, False),
        ("llava", TWO, "right", False, True),
    ],
)
def test_decoders(name: str, layout: Any, padding: str, causal: bool, static: bool, sdpa: list[bool]) -> None:
    family = FAMILIES[name]
    model, inputs = family.build(3), family.inputs(layout, padding=padding)

    def cache() -> Any:
        return StaticCache(model.config.get_text_config(), max_cache_len=64) if static else None

    with torch.no_grad():
        with opskip.oracle(model, opskip.Schedule.from_spec("silent:1 attend:2"), visual_mask(inputs)):
            want = results(model, inputs, cache)
        opskip.compile(model, "silent:1 attend:2", options={"lower": "eager"})
        got = results(model, inputs, cache)
    assert sdpa == [causal] * 2  # layers 0 and 2; that of layer 1 has few queries
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=0)
    assert {done.name: done.changed for done in opskip.last_report().passes}["causal"] == 2


@pytest.mark.parametrize("how", ["switched off", "gradients", "autocast"])
def test_where_the_mask_is_kept(how: str, sdpa: list[bool]) -> None:
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.build(2), family.inputs()
    opskip.compile(model, "silent:1", options={"lower": "eager", "causal": how != "switched off"})
    with torch.set_grad_enabled(how == "gradients"), torch.autocast("cpu", torch.bfloat16, how == "autocast"):
        model(**inputs)
    assert opskip.last_report().rewritten
    assert sdpa == []


def dropout(q: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, q * 2, q * 3, mask, dropout_p=0.5)


def additive(q: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, q * 2, q * 3, mask.float().log())


def one_line(q: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, q * 2, q * 3, mask[:, :, :1])


def written_to(q: Tensor, mask: Tensor) -> Tensor:
    mask = mask.clone()
    first = F.scaled_dot_product_attention(q, q * 2, q * 3, mask)
    mask[:, :, 0, 1] = True
    return first + F.scaled_dot_product_attention(q, q * 2, q * 3, mask)


def three_dimensions(q: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[0], q[0] * 2, q[0] * 3, mask[0])


def plain(q: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, q * 2, value=q * 3, attn_mask=mask, scale=0.2)


@pytest.mark.parametrize(
    ("function", "count"),
    [(plain, 1), (dropout, 0), (additive, 0), (one_line, 0), (written_to, 0), (three_dimensions, 0)],
)
def test_forms_of_attention(function: Callable[..., Tensor], count: int) -> None:
    q, mask = torch.randn(1, 2, 6, 8), tril()
    gm = capture(function, q, mask)
    assert ask_for_causal_masks(gm.graph) == count
    gm.graph.lint()
    gm.recompile()
    if function is not dropout:
        inputs = [q if "q" in node.name else mask for node in gm.graph.find_nodes(op="placeholder")]
        result = gm(*inputs)
        torch.testing.assert_close(result[0] if isinstance(result, tuple) else result, function(q, mask))


def test_parallel_operators_have_nothing_left_over() -> None:
    """The norm that both operators read goes on running for the attention, whose mask is replaced."""
    weights = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) / 4

    def forward(hidden: Tensor, visual: Tensor, mask: Tensor) -> Tensor:
        hidden = opskip.mark_visual(hidden, visual)
        for query, value, up, down in weights:
            norm = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
            heads = [(norm @ w).view(1, 12, 2, 8).transpose(1, 2) for w in (query, value)]
            out = F.scaled_dot_product_attention(heads[0], heads[0], heads[1], mask).transpose(1, 2).reshape(1, 12, 16)
            hidden = hidden + out + F.silu(norm @ up) @ down
        return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)

    inputs = torch.randn(1, 12, 16), torch.arange(12)[None] < 7, tril(12, 12)
    compiled = torch.compile(forward, backend="opskip", options={"schedule": "attend:0-1", "lower": "eager"})
    compiled(*inputs)
    report = opskip.last_report()
    assert report.skipped == ("0.ffn", "1.ffn")
    assert [done.changed for done in report.passes if done.name == "causal"] == [2]
    assert not report.remaining()
