"""Peak memory of prefill: leaving rows out must not cost memory, wherever it starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.timing.decoders import Decoder
from opskip_compile.timing.peak_memory import peak_bytes

pytestmark = pytest.mark.usefixtures("fresh")
DECODER = Decoder("", "Qwen3VLText", opskip.Geometry(4, 256, 768, 4, 2, 64))


@pytest.fixture
def peak() -> Iterator[Callable[..., int]]:
    model = DECODER.build()
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


def test_measuring_prints_nothing() -> None:
    code = (
        "import torch\n"
        "from opskip_compile.timing.peak_memory import peak_bytes\n"
        "from opskip_compile.timing.time_by_kind import seconds_by_kind\n"
        "print(peak_bytes(lambda: torch.ones(1000)), *seconds_by_kind(lambda: torch.ones(1000)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["4000", "products", "attention", "other"]
    assert done.stderr == ""
