"""A rewritten graph comes back from the compiler's caches, and only where nothing that it stands on has changed."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import opskip_compile as opskip
from opskip_compile._compat.scheduler import order_of_mutations
from opskip_compile.backend import lowering
from opskip_compile.timing.decoders import Decoder

pytestmark = pytest.mark.usefixtures("fresh")
DECODER = Decoder("", "Qwen3VLText", opskip.Geometry(2, 64, 96, 4, 2, 16))


def test_warm_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = DECODER.build()
    hidden = torch.randn(1, 40, 64)

    def forward(hidden: Tensor, visual: Tensor) -> Tensor:
        result: Tensor = model(inputs_embeds=opskip.mark_visual(hidden, visual), use_cache=True).last_hidden_state
        return result

    def compiled(spec: str, first: int, last: int) -> tuple[int, int]:
        """Compile and compare with the oracle; hits and misses of AOTAutograd's cache."""
        visual = torch.zeros(1, 40, dtype=torch.bool)
        visual[:, first:last] = True
        torch._dynamo.reset()
        counters.clear()
        with torch.no_grad():
            got = torch.compile(forward, backend="opskip", options={"schedule": spec}, dynamic=False)(hidden, visual)
            with opskip.oracle(model, opskip.Schedule.of(spec), visual):
                want = model(inputs_embeds=hidden).last_hidden_state
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
        assert counters["aot_autograd"]["autograd_cache_bypass"] == 0
        return counters["aot_autograd"]["autograd_cache_hit"], counters["aot_autograd"]["autograd_cache_miss"]

    assert compiled("silent:1", 4, 30) == (0, 1)
    assert compiled("silent:1", 4, 30) == (1, 0)
    assert compiled("silent:1", 9, 12) == (1, 0)  # another number of kept rows
    assert compiled("attend:1", 4, 30) == (0, 1)
    monkeypatch.setattr(lowering, "_version", lambda: "other code")
    assert compiled("silent:1", 4, 30) == (0, 1)


@pytest.mark.inductor
def test_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight and of the input, for code that Inductor just made and for code out of its cache."""
    gradients_are_right(tmp_path, monkeypatch, hits=(0, 1))


@pytest.mark.inductor
def test_the_order_of_mutations_is_mended_where_it_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what mends Inductor's scheduler gradients come out wrong, and only with a torch that is mended."""
    faulty = order_of_mutations.needed
    monkeypatch.setattr(order_of_mutations, "needed", False)
    with pytest.raises(AssertionError, match="Mismatched elements") if faulty else nullcontext():
        gradients_are_right(tmp_path, monkeypatch, hits=(0,))


def gradients_are_right(folder: Path, monkeypatch: pytest.MonkeyPatch, hits: tuple[int, ...]) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    model = DECODER.build().requires_grad_()
    hidden, weight = torch.randn(1, 40, 64, requires_grad=True), torch.randn(1, 40, 64)
    visual = torch.zeros(1, 40, dtype=torch.bool)
    visual[:, 4:30] = True
    leaves = {"hidden": hidden, **dict(model.named_parameters())}
    del leaves["embed_tokens.weight"]

    def forward(hidden: Tensor, visual: Tensor) -> Tensor:
        result: Tensor = model(inputs_embeds=opskip.mark_visual(hidden, visual), use_cache=False).last_hidden_state
        return result

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((out * weight).sum(), list(leaves.values()))

    with torch.enable_grad():
        with opskip.oracle(model, opskip.Schedule.of("silent:1"), visual):
            wanted = gradients(model(inputs_embeds=hidden, use_cache=False).last_hidden_state)
        for hit in hits:
            torch._dynamo.reset()
            counters.clear()
            compiled = torch.compile(forward, backend="opskip", options={"schedule": "silent:1"}, dynamic=False)
            got = gradients(compiled(hidden, visual))
            assert opskip.last_report().rewritten
            assert counters["aot_autograd"]["autograd_cache_hit"] == hit
            for name, one, other in zip(leaves, got, wanted, strict=True):
                torch.testing.assert_close(
                    one, other, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
                )
