"""Attentions that share heads on a CPU: only copies of heads in a row are left out, and nothing changes by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import opskip_compile as opskip
from opskip_compile.passes.tune.shared_heads import share_heads
from tests.helpers.families import FAMILIES, ONE_IMAGE, visual_mask
from tests.helpers.graphs import capture

pytestmark = pytest.mark.usefixtures("fresh")


def copies(x: Tensor, times: int = 2) -> Tensor:
    batch, heads, rows, width = x.shape
    return x[:, :, None, :, :].expand(batch, heads, times, rows, width).reshape(batch, heads * times, rows, width)


def as_transformers_does(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, copies(k), copies(k * 2), mask, scale=0.3)


def causal(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, copies(k), copies(k * 2), is_causal=True)


def unsqueezed(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    key = k.unsqueeze(2).expand(1, 2, 2, 4, 8).reshape(1, 4, 4, 8)
    return F.scaled_dot_product_attention(q, key, copies(k), mask)


def in_another_order(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Heads one after the other and then again: another head for each query, with the same shapes."""
    key = k[:, None].expand(1, 2, 2, 4, 8).reshape(1, 4, 4, 8)
    return F.scaled_dot_product_attention(q, key, copies(k), mask)


def rows_for_heads(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """The new dimension stands behind rows, of which there are as many as copies."""
    short = k[:, :, :2]
    key = short[:, :, :, None].expand(1, 2, 2, 2, 8).reshape(1, 4, 2, 8)
    return F.scaled_dot_product_attention(q, key, copies(short), mask[..., :2])


def keys_alone(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, copies(k), torch.cat([k, k], 1), mask)


def part_of_the_heads(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    four = torch.cat([k, k], 1)
    key = four[:, 1:3, None].expand(1, 2, 2, 4, 8).reshape(1, 4, 4, 8)
    return F.scaled_dot_product_attention(q, key, key * 1, mask)


def written_to(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """What was copied changes before the attention reads the copy."""
    k = k.clone()
    key, value = copies(k), copies(k * 2)
    k[:, :, 0] = 7.0
    return F.scaled_dot_product_attention(q, key, value, mask) + k.sum()


def shared_already(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, k * 2, mask, enable_gqa=True)


CASES: dict[Callable[..., Tensor], int] = {
    as_transformers_does: 1,
    causal: 1,
    unsqueezed: 1,
    in_another_order: 0,
    rows_for_heads: 0,
    keys_alone: 0,
    part_of_the_heads: 0,
    written_to: 0,
    shared_already: 0,
}


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_what_counts_as_a_copy(function: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "q": torch.randn(1, 4, 4, 8, generator=generator),
        "k": torch.randn(1, 2, 4, 8, generator=generator),
        "mask": torch.ones(1, 1, 4, 4, dtype=torch.bool).tril(),
    }
    gm = capture(function, *inputs.values())
    assert share_heads(gm.graph, gm.graph) == CASES[function]
    gm.graph.lint()
    gm.recompile()
    given = [inputs[node.name.removeprefix("l_").removesuffix("_")] for node in gm.graph.find_nodes(op="placeholder")]
    result = gm(*given)
    result = result[0] if isinstance(result, tuple) else result
    torch.testing.assert_close(result, function(*inputs.values()))


def test_dropout_stays_as_it_is() -> None:
    def function(q: Tensor, k: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, copies(k), copies(k), dropout_p=0.5)

    gm = capture(function, torch.randn(1, 4, 4, 8), torch.randn(1, 2, 4, 8))
    assert share_heads(gm.graph, gm.graph) == 0


@pytest.mark.parametrize("causal", [True, False])
def test_decoder(causal: bool) -> None:
    """Attentions of all rows and of kept rows: switched on and off, both are as the oracle has it."""
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.build(3), family.inputs(ONE_IMAGE)
    assert model.config.text_config.num_attention_heads > model.config.text_config.num_key_value_heads
    with torch.no_grad():
        with opskip.oracle(model, opskip.Schedule.from_spec("silent:1 attend:2"), visual_mask(inputs)):
            want = model(**inputs).logits
        opskip.compile(model, "silent:1 attend:2", options={"lower": "eager", "causal": causal})
        got = model(**inputs).logits
    torch.testing.assert_close(got, want, atol=1e-4 * float(want.abs().max()), rtol=0)
    assert {each.name: each.changed for each in opskip.last_report().passes}.get("heads", 0) == (3 if causal else 0)
