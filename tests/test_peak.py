"""Peak memory of prefill: leaving rows out must not cost memory, wherever it starts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peak import peak_bytes
from prefill import build

import opskip_compile as opskip

pytestmark = pytest.mark.usefixtures("fresh")
SIZES = {"layers": 4, "width": 256, "ffn_width": 768, "heads": 4, "kv_heads": 2, "head_dim": 64}


@pytest.fixture
def peak() -> Iterator[Callable[..., int]]:
    model = build(argparse.Namespace(**SIZES, device="cpu", dtype="float32"))
    hidden, visual = torch.randn(1, 577, 256), torch.zeros(1, 577, dtype=torch.bool)
    visual[:, 16:528] = True

    def forward() -> Any:
        return model(inputs_embeds=opskip.mark_visual(hidden, visual), use_cache=True)

    def measure(**how: Any) -> int:
        torch._dynamo.reset()
        call = torch.compile(forward, **how)
        call()
        return peak_bytes(call)

    with torch.no_grad():
        yield measure


def test_peak_memory_is_not_above_dense(peak: Callable[..., int]) -> None:
    dense = peak()
    assert dense > 4 * 577 * 256 * 4
    for spec in ("silent:0", "silent:3", "attend:1"):
        assert peak(backend="opskip", options={"schedule": spec}) <= dense, spec
        assert opskip.last_report().rewritten
