"""Token dropping as a baseline: it computes what the decoder does on fewer rows, and counts what it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from opskip_compile.timing.decoders import DECODERS, Decoder
from opskip_compile.timing.dropping import Dropping
from tests.helpers.caches import CACHE
from tests.helpers.small_prefill import SMALL, TEXT, VISUAL

pytestmark = pytest.mark.usefixtures("fresh")
KINDS = sorted({decoder.kind for decoder in DECODERS.values()})


def prompt() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.zeros(VISUAL + TEXT, dtype=torch.bool)
    mask[7 : 7 + VISUAL] = True
    return torch.randn(1, VISUAL + TEXT, 64), mask.nonzero().flatten(), (~mask).nonzero().flatten()


@pytest.mark.filterwarnings("error::FutureWarning")  # no name of an argument that transformers is about to drop
@pytest.mark.parametrize("kind", KINDS)
def test_token_dropping_is_the_decoder_on_fewer_rows(kind: str) -> None:
    model: Any = Decoder("", kind, SMALL).build()
    hidden, visual, text = prompt()
    with torch.no_grad():
        dense = model(inputs_embeds=hidden, use_cache=True)
        nothing, cache = Dropping(2, 0.0).forward(model, hidden, visual, text)
        torch.testing.assert_close(nothing, dense.last_hidden_state, atol=1e-5, rtol=1e-5)
        for got, want in zip(cache.layers, dense[CACHE].layers, strict=True):
            torch.testing.assert_close(got.keys, want.keys, atol=1e-5, rtol=1e-5)
        alone = model(inputs_embeds=hidden[:, text], position_ids=text[None]).last_hidden_state
        everything, _ = Dropping(0, 1.0).forward(model, hidden, visual, text)
        torch.testing.assert_close(everything, alone, atol=1e-5, rtol=1e-5)
        half, cache = Dropping(1, 0.5).forward(model, hidden, visual, text)
    assert half.shape == (1, TEXT + VISUAL // 2, 64)
    assert [layer.keys.shape[2] for layer in cache.layers] == [VISUAL + TEXT] + [TEXT + VISUAL // 2] * 3


def test_flops_of_token_dropping_are_those_that_run() -> None:
    model: Any = Decoder("", "Llama", SMALL).build()
    hidden, visual, text = prompt()

    def flops(call: Callable[..., Any], *args: Any) -> int:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call(*args)
        return int(counter.get_total_flops())

    rotary = flops(model.rotary_emb, hidden, torch.arange(VISUAL + TEXT)[None])  # a product, in some transformers
    for dropping in (Dropping(1, 0.5), Dropping(2, 1.0), Dropping(3, 0.25)):
        assert flops(dropping.forward, model, hidden, visual, text) - rotary == dropping.flops(SMALL, VISUAL, TEXT)
