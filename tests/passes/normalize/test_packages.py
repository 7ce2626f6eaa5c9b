"""FlashAttention packages: kept queries where the kernel is a plain attention of all rows, else full and why."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.flash_package import in_transformers
from tests.helpers.own_decoder import EAGER, visual

pytestmark = pytest.mark.usefixtures("fresh")
SPECS = ("silent:1 attend:0", "silent@through_visual:1 transform:0", "silent@keep=0.3:1 attend@keep=0.5:0")
ONE, TWO = ((3, 5),), ((3, 5), (6, 2))  # prompts of one length: padded ones go another way in transformers


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("name", "layout"), [("qwen3_vl", ONE), ("qwen3_vl", TWO), ("llava", TWO)])
def test_transformers_with_the_package(name: str, layout: Any, spec: str) -> None:
    """The oracle sees critical rows in PyTorch's attention, which computes the same."""
    family = FAMILIES[name]
    model, inputs = family.build(2), family.inputs(layout)
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = model(**inputs).logits
    dense = model(**inputs).logits
    with in_transformers(model):
        torch.testing.assert_close(model(**inputs).logits, dense)
        opskip.compile(model, spec, options=EAGER)
        got = model(**inputs).logits
        report = opskip.last_report()
        opskip.remove(model)
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, dense)
    assert len(report.skipped) == 3
    assert not report.misses
    assert not report.stops
    assert report.flops_before is not None
    assert report.flops_after is not None
    assert report.flops_after < report.flops_before


def test_lowered_by_inductor() -> None:
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.build(2), family.inputs(ONE)
    with opskip.oracle(model, opskip.Schedule.from_spec(SPECS[2]), visual_mask(inputs)):
        want = model(**inputs).logits
    with in_transformers(model):
        opskip.compile(model, SPECS[2])
        torch.testing.assert_close(model(**inputs).logits, want)
        opskip.remove(model)


def test_who_gets_nothing_is_told_what_works() -> None:
    """transformers looks in every layer whether a batch of one is packed, which ends the graph there."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs(ONE)
    with in_transformers(model), pytest.warns(opskip.NothingSkippedWarning) as told:
        opskip.compile(model, SPECS[0], options=EAGER)
        model(**inputs)
        gc.collect()  # it is said when the marked tensor goes
        opskip.remove(model)
    advice = next(str(each.message) for each in told if "set_attn_implementation" in str(each.message))
    assert "'flash_attention_2'" in advice
    assert "model.set_attn_implementation('sdpa')" in advice
    model.set_attn_implementation("sdpa")
    opskip.compile(model, SPECS[0], options=EAGER)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        model(**inputs)
    assert len(opskip.last_report().skipped) == 3


class Flash(nn.Module):
    """A decoder that calls a kernel with given arguments; with ``kept`` the first attention updates text rows only."""

    def kernel_of(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The result of the kernel."""
        out: Tensor = self.kernel(q, k, v, **self.more)[0]
        return out

    def __init__(self, library: str, more: dict[str, Any], cached: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kernel = getattr(torch.ops, library)._flash_attn_forward
        self.more, self.cached = more, cached
        self.attention = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.ffn = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.norm = nn.LayerNorm(16)

    def forward(self, hidden: Tensor, mask: Tensor, kept: bool = False) -> Tensor:
        hidden = opskip.mark_visual(hidden, mask)
        for i, (attention, ffn) in enumerate(zip(self.attention, self.ffn, strict=True)):
            q, k, v = (x.unflatten(-1, (2, -1)) for x in attention(self.norm(hidden)).chunk(3, dim=-1))
            if self.cached:
                k, v = (torch.cat([x[:, : self.cached], x], 1) for x in (k, v))
            update = self.kernel_of(q, k, v).flatten(2)
            hidden = hidden + (update.masked_fill(mask[..., None], 0) if kept and i == 0 else update)
            hidden = hidden + nn.functional.silu(ffn(self.norm(hidden)))
        return self.norm(hidden)


SECOND = {
    "dropout_p": 0.0,
    "softmax_scale": 0.5,
    "causal": True,
    "window_size_left": -1,
    "window_size_right": -1,
    "softcap": 0.0,
    "alibi_slopes": None,
    "return_softmax": False,
}
THIRD = {"causal": True, "num_splits": 2, "pack_gqa": True}
HUB = "opskip_tests_hub_flash3"


OTHER_ORDER, BY_NAME, READ = "opskip_tests_order", "opskip_tests_by_name", "opskip_tests_read"
SCHEMAS = {
    OTHER_ORDER: "(Tensor k, Tensor q, Tensor v, float? softmax_scale=None, bool causal=False) -> (Tensor, Tensor)",
    BY_NAME: "(Tensor q, Tensor k, Tensor v, *, float? softmax_scale=None, bool causal=False) -> (Tensor, Tensor)",
}
LIBRARIES = {name: torch.library.Library(name, "DEF") for name in SCHEMAS}


def _by_name(**given: Any) -> tuple[Tensor, Tensor]:
    q, k, v = (given[name].transpose(1, 2) for name in "qkv")
    out = nn.functional.scaled_dot_product_attention(q, k, v, scale=given["softmax_scale"], is_causal=given["causal"])
    return out.transpose(1, 2).contiguous(), q.new_zeros(1)


def _in_order(k: Tensor, q: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False) -> Any:
    return _by_name(q=q, k=k, v=v, softmax_scale=softmax_scale, causal=causal)


def _named(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float | None = None, causal: bool = False) -> Any:
    return _by_name(q=q, k=k, v=v, softmax_scale=softmax_scale, causal=causal)


for name, function in ((OTHER_ORDER, _in_order), (BY_NAME, _named)):
    LIBRARIES[name].define(f"_flash_attn_forward{SCHEMAS[name]}")
    LIBRARIES[name].impl("_flash_attn_forward", function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{name}::_flash_attn_forward", function, lib=LIBRARIES[name])


class Unusual(Flash):
    """As `Flash`, with other libraries, or one that reads the scores' sums as well."""

    def __init__(self, library: str) -> None:
        super().__init__("flash_attn" if library == READ else library, {}, 0)
        self.library = library

    def kernel_of(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.library == READ:
            out, sums, *_ = self.kernel(q, k, v, **SECOND)
            return out + 0 * sums.transpose(1, 2).unsqueeze(-1)
        first = (k, q, v) if self.library == OTHER_ORDER else (q, k, v)
        out: Tensor = self.kernel(*first, causal=True)[0]
        return out


@pytest.mark.parametrize("library", [OTHER_ORDER, BY_NAME, READ])
def test_unusual_kernels(library: str) -> None:
    """Arguments go by their names; a kernel of which more is read stays full."""
    model, hidden, mask = Unusual(library).eval(), torch.randn(2, 12, 16), visual(2, 12, 2, 8)
    want = model(hidden, mask, kept=True)
    model.compile(backend="opskip", options={"schedule": "transform:0", "lower": "eager"})
    torch.testing.assert_close(model(hidden, mask), want)
    report = opskip.last_report()
    assert len(report.skipped) == 1
    assert bool(report.stops) is (library == READ)
    assert all("more than its result is read" in stop.reason for stop in report.stops)


@pytest.mark.parametrize(
    ("library", "more", "cached", "lifted"),
    [
        ("flash_attn", {}, 0, True),
        ("flash_attn", {"window_size_right": 0}, 0, True),
        ("flash_attn", {"causal": False}, 0, True),
        ("flash_attn", {"causal": False}, 3, True),
        ("flash_attn", {}, 3, False),
        ("flash_attn", {"window_size_left": 2}, 0, False),
        ("flash_attn", {"window_size_right": 1}, 0, False),
        ("flash_attn", {"softcap": 20.0}, 0, False),
        ("flash_attn", {"dropout_p": 0.1}, 0, False),
        ("flash_attn", {"alibi_slopes": torch.ones(2)}, 0, False),
        (HUB, {}, 0, True),
        (HUB, {"causal": False, "softmax_scale": 0.3}, 0, True),
        (HUB, {"attention_chunk": 4}, 0, False),
        (HUB, {"window_size_left": 2}, 0, False),
        (HUB, {"page_table": torch.zeros(1, 1)}, 0, False),
    ],
)
def test_arguments_of_a_kernel(library: str, more: dict[str, Any], cached: int, lifted: bool) -> None:
    model = Flash(library, {**(SECOND if library == "flash_attn" else THIRD), **more}, cached).eval()
    hidden, mask = torch.randn(2, 12, 16), visual(2, 12, 2, 8)
    mask[1, 2:4] = False
    want = model(hidden, mask, kept=True)
    model.compile(backend="opskip", options={"schedule": "transform:0", "lower": "eager"})
    torch.testing.assert_close(model(hidden, mask), want)
    report = opskip.last_report()
    assert len(report.skipped) == 1
    if lifted:
        assert not report.stops
    else:
        assert len(report.stops) == 1
        assert "this kernel has a window" in report.stops[0].reason
