"""Small decoders of every build: which operators are found, why others are not, and the result after every pass.

The decoders and the oracle stand in `decoders.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._dynamo.exc import BackendCompilerFailed

from opskip_compile.passes.analysis.locate import locate_rows
from opskip_compile.passes.analysis.match import PART, match_operators
from opskip_compile.passes.pipeline import rewrite
from opskip_compile.passes.refusal import Refusal
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.passes.state import Options, Resolved
from opskip_compile.passes.steps import NO_OPERATOR, NO_ROWS
from opskip_compile.report.build import make_report
from opskip_compile.report.report import Report
from opskip_compile.schedule.schedule import Schedule
from tests.helpers.decoders import (
    WIDTH,
    W,
    add,
    added_in_place,
    attention,
    branch_read_twice,
    deepstack,
    deepstack_in_place,
    ffn_first,
    fragment,
    gate_in_layer_one,
    handed_on,
    handed_on_as_wide,
    hidden_states,
    in_place_at_once,
    norm,
    norm_after,
    oracle,
    parallel,
    plain_ffn,
    pre_norm,
    scaled,
    shape_only,
    shared_keys,
    two_ffns,
    with_cache,
)
from tests.helpers.graphs import capture

STAGES = ("insert", "push_down", "cancel", "share_rotary", "clean_up")
VISUAL = torch.tensor([[0, 1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0, 1]]).bool()


def run(
    model: Callable[..., Any], spec: str, batch: int, mark: str = "call", counted: int | None = None, **options: Any
) -> Any:
    """Results after each stage, reports, and the result as the caller gets it; ``counted``: the schedule's layers."""
    torch.manual_seed(1)
    h, features = torch.randn(batch, 8, WIDTH), torch.randn(batch, 8, WIDTH)
    visual = VISUAL[:batch]
    stages: dict[str, Any] = {}
    reports: list[Report] = []

    def marked(h: Tensor, visual: Tensor, features: Tensor) -> Any:
        if mark == "call":
            h = mark_visual(h, visual)
        return model(h, add, features), torch.isnan(visual)

    def mark_input(graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
        inputs = {n.name: n for n in graph.find_nodes(op="placeholder")}
        return inputs["l_h_"], inputs["l_visual_"]

    def backend(gm: fx.GraphModule, example_inputs: object) -> Callable[..., Any]:
        options.setdefault("mark_input", mark_input if mark == "input" else None)
        schedule = replace(Schedule.from_spec(spec), num_layers=counted)
        asked = Options(lambda *_: Resolved(schedule, "test"), **options)
        done = {s: rewrite(gm, asked, until=s) for s in STAGES}
        reports.extend(make_report(r) for r in done.values())
        graphs = {s: gm if r.graph is None else fx.GraphModule(gm, r.graph) for s, r in done.items()}

        def call(*args: Any) -> Any:
            stages.update((s, graph(*args)) for s, graph in graphs.items())
            return stages["clean_up"]

        return call

    torch._dynamo.reset()
    result = torch.compile(marked, backend=backend, fullgraph=True)(h, visual, features)[0]
    return result, stages, reports[-1], (h, visual, features)


@dataclass(frozen=True)
class Build:
    """A decoder, a schedule and what is to be skipped of it."""

    model: Callable[..., Any]
    spec: str
    skipped: str
    through: str = ""
    misses: tuple[tuple[str, str], ...] = ()
    layers: int = 3
    stopped: bool = False
    counted: int | None = None


NOT_ITS_OWN = "add does not add the operator to its own input"
IN_PLACE = "it is added in place, and the same memory may be read under another name"
ALL_3 = "0.attention 0.ffn 1.attention 1.ffn 2.attention 2.ffn"
BUILDS = {
    "pre-norm": Build(pre_norm, "silent:1-2", "1.attention 1.ffn 2.attention 2.ffn"),
    "pre-norm-all": Build(pre_norm, "silent:0-2", ALL_3),
    "two-row-sets": Build(
        pre_norm,
        "silent@through_visual:2 transform:0 attend:1",
        "0.attention 1.ffn 2.attention 2.ffn",
        "2.attention 2.ffn",
    ),
    "norm-after": Build(norm_after, "transform:0 silent:1", "0.attention 1.attention 1.ffn", layers=2),
    "parallel-one": Build(parallel, "transform:0 attend:1", "0.attention 1.ffn"),
    "parallel-both": Build(parallel, "silent:1-2", "1.attention 1.ffn 2.attention 2.ffn"),
    "parallel-two-row-sets": Build(parallel, "transform:1 attend@through_visual:1", "1.attention 1.ffn", "1.ffn"),
    "scaled": Build(scaled, "silent:0-1", "0.attention 0.ffn 1.attention 1.ffn", layers=2),
    "deepstack": Build(deepstack, "silent:0-2", ALL_3),
    "deepstack-in-place": Build(deepstack_in_place, "silent:0-2", ALL_3, stopped=True),
    "in-place-at-once": Build(in_place_at_once, "silent:0-2", ALL_3, stopped=True),
    "plain-ffn": Build(plain_ffn, "silent:1 attend:0", "0.ffn 1.attention 1.ffn", layers=2),
    "hidden-states": Build(hidden_states, "silent:1-2", "1.attention 1.ffn 2.attention 2.ffn", counted=3),
    "shape-only": Build(shape_only, "silent:1-2", "1.attention 1.ffn 2.attention 2.ffn"),
    "with-cache": Build(with_cache, "silent:0 transform:2", "0.attention 0.ffn 2.attention"),
    "gate": Build(
        gate_in_layer_one,
        "silent:0-2",
        "0.attention 0.ffn 1.ffn 2.attention 2.ffn",
        misses=(("1.attention", NOT_ITS_OWN),),
    ),
    "shared-keys": Build(shared_keys, "silent:1,3", "1.attention 1.ffn 3.attention 3.ffn", layers=4),
    "handed-on": Build(handed_on, "silent:0-2", ALL_3),
    "added-in-place": Build(added_in_place, "silent:0", "0.attention", misses=(("0.ffn", IN_PLACE),), layers=1),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", BUILDS)
def test_every_stage_gives_the_oracles_result(name: str, batch: int) -> None:
    build = BUILDS[name]
    result, stages, report, (h, visual, features) = run(build.model, build.spec, batch, counted=build.counted)
    assert report.num_layers == build.layers
    assert sorted(report.skipped) == build.skipped.split()
    assert [(f"{m.layer}.{m.kind}", m.reason) for m in report.misses] == list(build.misses)
    assert all(m.source.startswith("decoders.py:") for m in report.misses)
    expected = build.model(h, oracle(visual, build.skipped.split(), build.through.split()), features)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    dense = build.model(h, add, features)
    (dense, *_), (skipped, *_) = ((x if isinstance(x, tuple) else (x,)) for x in (dense, expected))
    assert (dense - skipped).abs().max() > 1e-2
    for stage in STAGES[:-1]:
        torch.testing.assert_close(stages[stage], stages["clean_up"], rtol=0, atol=1e-5)
    if not build.stopped:
        assert report.remaining() == {}
        assert report.stops == ()


@pytest.mark.parametrize(
    ("model", "mark", "reason"),
    [
        (fragment, "input", PART),
        (pre_norm, "no", NO_ROWS),
        (lambda h, join, features: norm(F.linear(h, W[0, 0])), "call", NO_OPERATOR),
    ],
    ids=["fragment", "no-rows", "no-operator"],
)
def test_graph_stays_as_it_is_with_a_reason(model: Callable[..., Any], mark: str, reason: Refusal) -> None:
    result, _, report, (h, _, features) = run(model, "silent:0", 1, mark)
    assert not report.rewritten
    assert report.refusal == reason
    assert reason.reason in str(report)
    torch.testing.assert_close(result, model(h, add, features))


@pytest.mark.parametrize("model", [fragment, hidden_states])
@pytest.mark.parametrize("counted", [None, 4])
def test_what_may_be_a_part_is_not_numbered(model: Callable[..., Any], counted: int | None) -> None:
    """``late:0.5`` of a part would be other layers than of the whole."""
    _, _, report, _ = run(model, "late:0.5" if counted is None else "silent:1", 1, counted=counted)
    assert not report.rewritten
    assert report.refusal == PART


@pytest.mark.parametrize("model", [handed_on_as_wide, branch_read_twice])
def test_layers_between_which_a_value_passes_the_stream_by(model: Callable[..., Any]) -> None:
    """All of them are between two dominators, and what is left of the stream after them must not be numbered from 0."""
    result, _, report, (h, _, features) = run(model, "attend:0", 2)
    assert not report.rewritten
    assert "layers can't be counted" in report.reason
    torch.testing.assert_close(result, model(h, add, features))


@pytest.mark.parametrize("model", [ffn_first, two_ffns])
def test_layers_that_can_not_be_counted(model: Callable[..., Any]) -> None:
    """Counting by attention may be wrong here, so only a schedule that agrees on the count is followed."""
    _, _, report, _ = run(model, "late:0.5", 1)
    assert not report.rewritten
    assert "before the first attention" in report.reason or "follow each other in layer 0" in report.reason
    result, _, report, (h, visual, features) = run(model, "transform:1", 2, counted=2)
    assert report.skipped == ("1.attention",)
    torch.testing.assert_close(result, model(h, oracle(visual, report.skipped), features), rtol=0, atol=1e-5)


def merge_then(between: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Two merges, and what happens to the stream between them."""

    def model(h: Tensor, features: Tensor, image: Tensor, video: Tensor) -> Tensor:
        h = between(h.masked_scatter(image, features))
        h = h.masked_scatter(video, features * 2)
        return norm(h + attention(norm(h), 0))

    return model


@pytest.mark.parametrize(
    ("between", "masks"),
    [(lambda h: h, 2), (lambda h: h.float(), 2), (lambda h: h + attention(norm(h), 1), 1)],
    ids=["at-once", "cast", "a-layer"],
)
def test_the_stream_starts_at_the_merge(between: Callable[[Tensor], Tensor], masks: int) -> None:
    """A scatter between layers is no start: the layers before it would be lost and the others misnumbered."""
    h, features = torch.randn(1, 8, WIDTH), torch.randn(1, 8, WIDTH)
    image, video = VISUAL[:1, :, None].expand(-1, -1, WIDTH), VISUAL[1:, :, None]
    source = locate_rows(capture(merge_then(between), h, features, image, video).graph)
    assert source is not None
    assert len(source.masks) == masks
    assert match_operators(source.root).num_layers == 3 - masks


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 8, 1), (1, 1, WIDTH)])
def test_a_mask_that_names_no_rows_is_no_source(shape: tuple[int, ...]) -> None:
    h, mask = torch.randn(2, 8, WIDTH), torch.ones(shape, dtype=torch.bool)
    assert locate_rows(capture(lambda h, m: norm(h.masked_scatter(m, h * 2)), h, mask).graph) is None


def marked_between(h: Tensor, visual: Tensor) -> Tensor:
    """What a graph break behind DeepStack would leave of a decoder."""
    h = h + attention(norm(h), 0)
    return mark_visual(h + torch.ones_like(h), visual)


def test_a_marked_stream_that_is_returned_is_a_part() -> None:
    graph = capture(marked_between, torch.randn(1, 8, WIDTH), VISUAL[:1]).graph
    source = locate_rows(graph)
    assert source is not None
    assert match_operators(source.root).doubt == PART


def test_layer_count_of_the_schedule_proves_the_whole() -> None:
    result, _, report, (h, visual, features) = run(fragment, "silent:1", 2, counted=2)
    assert report.skipped == ("1.attention", "1.ffn")
    torch.testing.assert_close(result, fragment(h, oracle(visual, report.skipped), features), rtol=0, atol=1e-5)


def test_marked_input_is_a_row_source() -> None:
    result, _, report, (h, visual, features) = run(pre_norm, "silent:1", 2, "input")
    assert report.row_source == "marked_input"
    torch.testing.assert_close(result, pre_norm(h, oracle(visual, report.skipped), features), rtol=0, atol=1e-5)


def test_strict_names_the_operator_and_the_line() -> None:
    message = rf"RewriteError: 1\.attention stays full at \S+ \(decoders.py:\d+\): {NOT_ITS_OWN}"
    with pytest.raises(BackendCompilerFailed, match=message):
        run(gate_in_layer_one, "silent:1", 1, strict=True)


def test_schedule_none_changes_nothing() -> None:
    result, _, report, (h, _, features) = run(pre_norm, "none", 1)
    assert not report.rewritten
    assert report.reason == "the schedule skips nothing here"
    assert torch.equal(result, pre_norm(h, add, features))
