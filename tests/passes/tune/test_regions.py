"""Layers that are alike are compiled once: the same result, and nothing shared that can't be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.debugging import aot_eager
from transformers import StaticCache

import opskip_compile as opskip
from opskip_compile import _compat
from opskip_compile.backend import entry as backend
from opskip_compile.passes.tune import regions
from opskip_compile.timing.decoders import Decoder
from tests.helpers.caches import CACHE
from tests.helpers.leveled import leveled

pytestmark = pytest.mark.usefixtures("fresh")
DECODER = Decoder("", "Qwen3VLText", opskip.Geometry(8, 64, 96, 4, 2, 16))
PADDED = torch.ones(1, 40, dtype=torch.int64)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """AOTAutograd traces every graph, as for Inductor, and nothing is generated."""

    def trace(gm: fx.GraphModule, inputs: Sequence[Any], config: dict[str, Any]) -> Callable[..., Any]:
        return aot_eager(gm, list(inputs))

    monkeypatch.setattr(_compat, "inductor", trace)


def compare(
    spec: str | opskip.Schedule,
    model: nn.Module | None = None,
    padding: Tensor | None = PADDED,
    batch: int = 1,
    cache: Callable[[], Any] | None = None,
    **options: Any,
) -> int | None:
    """Run a decoder with skipped operators, compare hidden states, keys and values; the layers that share a region.

    None if the pass did not run.
    """
    torch._dynamo.reset()
    model = model or DECODER.build()
    hidden = torch.randn(batch, 40, 64)
    visual = torch.zeros(batch, 40, dtype=torch.bool)
    for i in range(batch):
        visual[i, 4 + i : 30 - i] = True
    padding = None if padding is None else padding.expand(batch, -1)

    def forward(hidden: Tensor, visual: Tensor, padding: Tensor | None, cache: Any) -> Any:
        hidden = opskip.mark_visual(hidden, visual)
        return model(inputs_embeds=hidden, attention_mask=padding, **{CACHE: cache}, use_cache=True)

    def values(result: Any) -> list[Tensor]:
        return [result.last_hidden_state] + [x for a in result[CACHE].layers for x in (a.keys, a.values)]

    with torch.no_grad():
        given = {"schedule": spec, "strict": True, **options}
        got = torch.compile(forward, backend="opskip", options=given)(hidden, visual, padding, cache and cache())
        with opskip.oracle(model, opskip.Schedule.of(spec), visual):
            want = model(inputs_embeds=hidden, attention_mask=padding, **{CACHE: cache and cache()}, use_cache=True)
    for a, b in zip(values(got), values(want), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    return {done.name: done.changed for done in opskip.last_report().passes}.get("regions")


# Schedule -> layers of six that have a partner. Full, attend, transform and silent layers; the kept rows change hands
# between silent ones, and the row set may change.
SCHEDULES = {
    "late:0.5": 6,
    "transform:2-5": 6,
    "attend:0-1 silent:2-4": 5,
    "transform:0-1 silent:2 attend:3,4": 4,
    "silent@through_visual:1-5": 5,
    "silent:1,2 silent@through_visual:3,4": 6,
    "attend@keep=0.25:0-5": 6,
    "transform@keep=0.5:1-4": 3,  # the last of them is asked for no scores, as is the full layer after it
    "silent@keep=0.5:2-5": 6,
    "silent@keep=0.5:2,3 silent@keep=0.25:4,5": 6,
}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("spec", SCHEDULES)
def test_the_oracle_s_result(spec: str) -> None:
    assert compare(spec, DECODER.cut(6).build()) == SCHEDULES[spec]


@pytest.mark.usefixtures("traced")
def test_an_input_of_the_graph_that_a_layer_reads_twice() -> None:
    """The rows are marked before the graph, so the first layer reads one placeholder where others read two values."""
    model, hidden = DECODER.build(), torch.randn(1, 40, 64)
    visual = torch.zeros(1, 40, dtype=torch.bool)
    visual[:, 4:30] = True

    def forward(hidden: Tensor) -> Tensor:
        return model(inputs_embeds=hidden, use_cache=False).last_hidden_state

    got = torch.compile(forward, backend="opskip", options={"schedule": "silent:0-7"})(
        opskip.mark_visual(hidden, visual)
    )
    with opskip.oracle(model, opskip.Schedule.of("silent:0-7"), visual):
        want = forward(hidden)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert opskip.last_report().row_source == "marked_input"


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("batch", "padding"), [(1, None), (2, PADDED)], ids=["no mask", "batch"])
def test_batches_and_masks(batch: int, padding: Tensor | None) -> None:
    assert compare("transform:1,2 late:0.5", padding=padding, batch=batch) == 8


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("batch", [1, 2])
def test_layers_with_shares_of_their_own_are_one_region(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows a layer keeps is no part of its code, whatever the levels are."""
    shares = ((0.5, 0.25), (0.7, 0), (1, 0.1), (0.3, 0.2), (0.5, 0), (1, 0.5))
    specs = [" ".join(f"silent@keep={share[level]}:{i}" for i, share in enumerate(shares)) for level in (0, 1)]
    made: list[int] = []
    region = regions._region
    monkeypatch.setattr(regions, "_region", lambda group: (made.append(len(group)), region(group))[1])
    for spec in (leveled("none", *specs, num_layers=None), specs[0].replace("keep=1:", "keep=0.9:")):
        assert compare(spec, DECODER.cut(6).build(), batch=batch) == 6
    assert made == [6, 6]


@pytest.mark.inductor
def test_under_inductor() -> None:
    assert compare("silent:0-3", DECODER.cut(4).build()) == 4


def test_switched_off() -> None:
    assert compare("late:0.5", lower="eager", regions=False) is None


def test_layers_that_differ_share_nothing() -> None:
    """In a constant, in the form of a weight and in an operation."""
    model: Any = DECODER.build()
    model.layers[1].input_layernorm.variance_epsilon = 1e-3
    model.layers[2].mlp.gate_proj.weight = nn.Parameter(model.layers[2].mlp.gate_proj.weight.data.t().contiguous().t())
    model.layers[3].mlp.act_fn = nn.GELU()
    assert compare("late:0.5", model, lower="eager") == 4
    assert compare("late:0.5", DECODER.build(), lower="eager") == 8


def test_what_writes_in_place_keeps_its_order() -> None:
    def cache() -> StaticCache:
        return StaticCache(config=model.config, max_cache_len=48)

    model: Any = DECODER.build()
    assert compare("late:0.5", model, cache=cache, lower="eager") == 0


def test_random_numbers_keep_their_order() -> None:
    model: Any = DECODER.build()
    visual = torch.ones(1, 40, dtype=torch.bool)

    def forward(hidden: Tensor) -> Tensor:
        hidden = opskip.mark_visual(hidden, visual)
        return model(inputs_embeds=nn.functional.dropout(hidden, 0.5), use_cache=False).last_hidden_state

    torch.compile(forward, backend="opskip", options={"schedule": "late:0.5", "lower": "eager"})(torch.randn(1, 40, 64))
    report = opskip.last_report()
    assert report.rewritten
    assert [done.changed for done in report.passes if done.name == "regions"] == [0]


def test_a_result_that_shares_memory_is_no_region() -> None:
    """Each layer also hands on a view of what it reads."""
    layers = [nn.Linear(64, 64, bias=False) for _ in range(4)]

    def forward(hidden: Tensor, visual: Tensor, shared: bool) -> Any:
        hidden, seen = opskip.mark_visual(hidden, visual), []
        for layer in layers:
            heads = layer(nn.functional.layer_norm(hidden, (64,))).view(1, 40, 4, 16).transpose(1, 2)
            out = nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(1, 40, 64)
            seen.append(hidden[:, :3] if shared else hidden[:, :3] * 2)
            hidden = hidden + out
            hidden = hidden + nn.functional.silu(layer(nn.functional.layer_norm(hidden, (64,))))
        return nn.functional.layer_norm(hidden, (64,)), seen

    counts = []
    for shared in (False, True):
        hidden, visual = torch.randn(1, 40, 64), torch.arange(40)[None] < 20
        options = {"schedule": "attend:0-3", "lower": "eager", "strict": True}
        torch.compile(forward, backend="opskip", options=options)(hidden, visual, shared)
        counts += [done.changed for done in opskip.last_report().passes if done.name == "regions"]
    assert counts == [3, 0]  # before the first layer nothing was handed on


def test_regions_that_cannot_be_lowered(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The rewritten graph is lowered without them: nothing is lost but time."""

    def lower(gm: fx.GraphModule, inputs: Sequence[Any], config: dict[str, Any]) -> Callable[..., Any]:
        if any(node.target is regions.invoke_region for node in gm.graph.nodes):
            raise RuntimeError("no regions here")
        assert not list(gm.named_children())
        gm.recompile()
        return gm.forward

    monkeypatch.setattr(_compat, "inductor", lower)
    with caplog.at_level(logging.WARNING, logger=backend.__name__):
        assert compare("late:0.5") == 0
    assert "their regions can't be lowered" in caplog.text and "no regions here" in caplog.text
    assert opskip.last_report().rewritten
