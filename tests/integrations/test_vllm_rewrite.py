"""What the plug-in for vLLM does to a decoder in vLLM's form, and to the description of a step, without vLLM."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from opskip_compile._compat import served_experts, serving
from opskip_compile.backend.reports import REPORTS
from opskip_compile.errors import OpSkipError
from opskip_compile.integrations.vllm.runs import runs_of
from opskip_compile.integrations.vllm.skipper import rewrite_decoder
from opskip_compile.integrations.vllm.step import STEPS, StepMaker
from opskip_compile.passes.runtime import Given, mark_visual
from opskip_compile.schedule.schedule import Schedule
from tests.helpers.flat_decoder import HEADS, KEY_HEADS, LAYERS, SIZE, WIDTH, FlatDecoder, Paged, ask

pytestmark = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM registers the operators itself")
EAGER = {"lower": "eager"}
STEPS_OF = [  # lengths of the requests, rows before the step, visual rows by request
    ([7, 5, 1], [0, 0, 9], [[2, 3, 4], [], []]),
    ([6, 8], [4, 0], [[0, 1, 2], [0, 1, 4, 5, 6, 7]]),
    ([4, 3], [2, 3], [[0, 1, 2, 3], [0, 1, 2]]),
    ([2, 6], [0, 0], [[0], [1, 3, 5]]),
    ([3], [0], [[0, 1, 2]]),
]


@pytest.fixture(autouse=True)
def scales(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "scale_of", lambda name: SIZE**-0.5)
    monkeypatch.setattr(served_experts, "asks_each_row_alone", lambda name: True)
    monkeypatch.setattr(served_experts, "flops_of_row", lambda name: 2 * WIDTH * WIDTH)
    monkeypatch.setattr(served_experts, "ask", ask)


def compiled(model: FlatDecoder, schedule: str) -> Any:
    options = {"schedule": Schedule.of(schedule), "num_layers": LAYERS, "lower": "eager", "in_place": True}

    def run(embeds: torch.Tensor, deepstack: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        marked = mark_visual(embeds.unsqueeze(0), visual.unsqueeze(0)).squeeze(0)
        return model(marked, deepstack)

    return torch.compile(run, backend=rewrite_decoder, fullgraph=True, dynamic=True, options=options)


@pytest.mark.parametrize(
    "schedule",
    [
        "attend:0 transform:1 silent:2-3",
        "transform:all",
        "attend:all",
        "silent:all",
        "silent@through_visual:1,3 transform:0 attend:2",
        "silent@through_visual:all",
        "attend:all, blocked",
        "attend:all, routed",
        "silent:1,3 attend:2, shared",
        "silent:all, float64",
        "attend:1 transform:2 silent:0,3, float64",
    ],
)
def test_steps_of_requests(schedule: str, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, _, kernel = schedule.partition(", ")
    kind = torch.float64 if kernel == "float64" else torch.float32
    model, states = FlatDecoder(kernel=kernel).to(kind), Schedule.of(schedule).resolve(LAYERS)
    names = [layer.name for layer in model.layers]
    rows_of = [state.attention.rows if state.attention else "visual" for state in states]
    skipping, makes = compiled(model, schedule), StepMaker(None, dict(zip(names, rows_of, strict=True)))
    for number, (lengths, before, where) in enumerate(STEPS_OF):
        torch.manual_seed(number)
        paged, plain = Paged(len(lengths)), Paged(len(lengths))
        for cache in (paged, plain):
            monkeypatch.setattr(serving, "write_keys_and_values", cache.write)
            monkeypatch.setattr(serving, "attend", cache.attend)
            torch.manual_seed(100 + number)
            rows, nothing = sum(before), torch.zeros(sum(before), dtype=torch.bool)
            if rows:  # what earlier steps have left in the cache
                cache.step(before, [0] * len(before))
                earlier = torch.randn(rows, WIDTH, dtype=kind)
                model.oracle(earlier, torch.zeros_like(earlier), {"visual": nothing}, Schedule().resolve(LAYERS), cache)
        rows = sum(lengths)
        visual = torch.zeros(rows, dtype=torch.bool)
        for start, own in zip(np.cumsum([0, *lengths]), where, strict=False):
            visual[[int(start) + row for row in own]] = True
        through = torch.zeros(rows, dtype=torch.bool)
        for number_of, (start, count, own) in enumerate(zip(np.cumsum([0, *lengths]), lengths, where, strict=False)):
            # the first request has an image in a later step, too
            through[int(start) : int(start) + (count if number_of == 0 else max(own, default=-1) + 1)] = True
        left_out = {"visual": visual, "through_visual": through}
        embeds, deepstack = (torch.randn(rows, WIDTH, dtype=kind) for _ in range(2))
        deepstack *= visual[:, None]
        plain.step(lengths, before)
        wanted = model.oracle(embeds, deepstack, left_out, states, plain)
        monkeypatch.setattr(serving, "write_keys_and_values", paged.write)
        monkeypatch.setattr(serving, "attend", paged.attend)
        metadata = dict.fromkeys(names, paged.step(lengths, before))
        STEPS.now = makes.make(left_out, metadata, torch.device("cpu"))
        monkeypatch.setattr(Given, "through", through[None])
        counted = makes.by_request(left_out, metadata)
        assert counted is not None
        assert counted.left_out["visual"].tolist() == [len(own) for own in where]
        assert counted.left_out["through_visual"][0] == lengths[0]
        assert counted.keys.tolist() == [a + b for a, b in zip(lengths, before, strict=True)]
        torch.testing.assert_close(skipping(embeds, deepstack, visual), wanted, rtol=1e-5, atol=1e-5)
        for name in names:  # keys and values of every row, those of skipped ones too
            torch.testing.assert_close(paged.keys[name], plain.keys[name], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(paged.values[name], plain.values[name], rtol=1e-5, atol=1e-5)
    STEPS.now = None
    report = REPORTS.all()[0]
    assert not report.misses and not report.stops and not report.remaining()
    if schedule == "silent:all":  # in float64 casts stand around every sum, as in 16 bits
        written = [line.after.code for line in report.diff().lines if line.after is not None]
        assert sum("scatter_rows(" in code for code in written) == LAYERS + 1, (
            "one for the next layer's keys, and one below deepstack"
        )
    assert len(report.skipped) == sum((s.attention is not None) + (s.ffn is not None) for s in states)


def test_queries_of_kept_rows_alone_are_multiplied(fresh: None) -> None:
    """The packed projection of a layer whose attention is skipped is two products."""
    seen: list[torch.fx.GraphModule] = []
    model = FlatDecoder()

    def backend(gm: torch.fx.GraphModule, inputs: Any, **named: Any) -> Any:
        seen.append(gm)
        rewrite_decoder(gm, inputs, options={"schedule": Schedule.of("transform:1"), "num_layers": LAYERS, **EAGER})
        raise _Seen

    def run(embeds: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        return model(mark_visual(embeds.unsqueeze(0), visual.unsqueeze(0)).squeeze(0), embeds)

    with pytest.raises(Exception, match="_Seen"):
        torch.compile(run, backend=backend)(torch.randn(6, WIDTH), torch.arange(6) < 3)
    linears = [node for node in seen[0].graph.nodes if node.target is torch.nn.functional.linear]
    assert len(linears) == 4 * LAYERS + 1


class _Seen(Exception):
    pass


@pytest.mark.parametrize("kernel", ["experts", "sum"])
def test_a_kernel_that_nothing_is_known_of_is_named(kernel: str, fresh: None) -> None:
    """It runs on every row, as the products before it: never silently."""

    def backend(gm: torch.fx.GraphModule, inputs: Any, **named: Any) -> Any:
        rewrite_decoder(gm, inputs, options={"schedule": Schedule.of("attend:1"), "num_layers": LAYERS, **EAGER})
        raise _Seen

    def run(embeds: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        return model(mark_visual(embeds.unsqueeze(0), visual.unsqueeze(0)).squeeze(0), embeds)

    model = FlatDecoder(kernel)
    with pytest.raises(Exception, match="_Seen"):
        torch.compile(run, backend=backend)(torch.randn(6, WIDTH), torch.arange(6) < 3)
    (report,) = REPORTS.all()
    remaining = report.remaining()
    assert remaining[f"somebodys_{kernel}"] == 1
    assert remaining["linear"] == 2


def test_runs_are_neighbours_of_one_request() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        lengths = generator.integers(1, 9, generator.integers(1, 5))
        starts = np.cumsum([0, *lengths])
        left_out = generator.random(starts[-1] + generator.integers(0, 3)) < generator.random()
        runs = runs_of(left_out, starts)
        kept = [row for row in range(starts[-1]) if not left_out[row]]
        assert runs.rows.tolist() == kept
        covered = []
        for run, owner in enumerate(runs.owners):
            own = runs.rows[runs.starts[run] : runs.starts[run + 1]].tolist()
            covered += own
            assert own == list(range(own[0], own[-1] + 1))
            assert starts[owner] <= own[0] and own[-1] < starts[owner + 1]
            assert runs.after[run] == starts[owner + 1] - 1 - own[-1]
            is_end = own[-1] + 1 == starts[owner + 1] or left_out[own[-1] + 1]
            assert is_end and (own[0] == starts[owner] or left_out[own[0] - 1])
        assert covered == kept


def test_kept_rows_outside_of_a_step_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never attention of other rows than those that were asked."""
    monkeypatch.setattr(serving, "write_keys_and_values", lambda *args: None)
    monkeypatch.setattr(STEPS, "now", None)
    query, key = torch.zeros(2, HEADS, SIZE), torch.zeros(6, KEY_HEADS, SIZE)
    with pytest.raises(OpSkipError, match=r"layers\.0\.attn is asked for kept rows outside of a step"):
        torch.ops.opskip.paged_attention(query, key, key, "layers.0.attn", SIZE, True, "visual", None, None)
