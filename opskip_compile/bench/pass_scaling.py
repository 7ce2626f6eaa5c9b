"""How the passes grow with the depth of the decoder, and how three ways to find its operators compare.

The real Qwen3-VL decoder class, captured by Dynamo without memory behind its weights, every operator skipped. Beside
our match, which follows the data flow, stand two that look for a pattern: networkx' VF2 (subgraph monomorphism over
the names of the operations) and the matcher of ``torch.fx``. Their pattern is one gated FFN in the spelling of this
very graph, so they find that and no attention, and prove nothing of what else reads the values inside. (Written with
``nn.SiLU``, which hands ``inplace=False`` on, the pattern is found nowhere by the matcher of ``torch.fx``.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from networkx.algorithms.isomorphism import DiGraphMatcher
from torch import Tensor, fx, nn

from opskip_compile import _compat
from opskip_compile.output.progress import Step
from opskip_compile.passes.analysis.locate import locate_rows
from opskip_compile.passes.analysis.match import match_operators
from opskip_compile.passes.normalize.cleanup import copy_graph
from opskip_compile.passes.ops import op_name
from opskip_compile.passes.pipeline import rewrite
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.passes.state import Options, Resolved
from opskip_compile.report.build import make_report
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.timing.decoders import Decoder

OURS, VF2, TORCH = "data flow (ours)", "networkx VF2", "torch.fx SubgraphMatcher"
WIDTH, INNER = 64, 128


@dataclass(frozen=True)
class Matched:
    """One matcher: the median of its times in milliseconds, and how many operators it found."""

    milliseconds: float
    found: int


@dataclass(frozen=True)
class Depth:
    """One decoder: nodes as captured and as handed to Inductor, milliseconds of each pass, and the matchers."""

    layers: int
    nodes: int
    nodes_after: int
    passes: Mapping[str, float]
    matchers: Mapping[str, Matched]

    @property
    def milliseconds(self) -> float:
        """All passes, the making of the report among them."""
        return sum(self.passes.values())


def measure_depths(
    depths: Sequence[int],
    *,
    runs: int = 3,
    matchers: bool = True,
    step: Step = lambda what, done, total: None,
) -> list[Depth]:
    """The median times at each depth.

    Args:
        depths: numbers of layers.
        runs: how often each pass and each matcher is timed.
        matchers: also time the pattern matchers.
        step: called with what is done now, and how many of how many steps are done.
    """
    measured = []
    for i, layers in enumerate(depths):
        step(f"capturing {layers} layers", 2 * i, 2 * len(depths))
        gm, inputs = _capture(layers)
        step(f"passes over {layers} layers", 2 * i + 1, 2 * len(depths))
        measured.append(_measure(gm, inputs, layers, runs, matchers))
    return measured


def _measure(gm: fx.GraphModule, inputs: Sequence[Any], layers: int, runs: int, matchers: bool) -> Depth:
    captured = gm.graph
    schedule = Resolved(Schedule.from_spec(f"silent:0-{layers - 1}"), "benchmark")
    passes: dict[str, list[float]] = {}
    after = 0
    for _ in range(runs):
        result = rewrite(gm, Options(lambda match, graph: schedule, causal=True, onednn=True, regions=True))
        assert result.graph is not None
        for done in make_report(result, inputs).passes:
            passes.setdefault(done.name, []).append(done.milliseconds)
        after = len((result.state.regions or result.graph).nodes)
    by_matcher = {}
    if matchers:
        graph = copy_graph(captured)
        source = locate_rows(graph)
        assert source is not None
        by_matcher[OURS] = _timed(lambda: len(match_operators(source.root).operators), runs)
        pattern = _capture_ffn().graph
        by_matcher[VF2] = _timed(lambda: _vf2(captured, pattern), runs)
        by_matcher[TORCH] = _timed(lambda: len(_compat.pattern_matches(pattern, captured)), runs)
    medians = {name: statistics.median(times) for name, times in passes.items()}
    return Depth(layers, len(captured.nodes), after, medians, by_matcher)


def _timed(call: Callable[[], int], runs: int) -> Matched:
    times, operators = [], 0
    for _ in range(runs):
        start = time.perf_counter()
        operators = call()
        times.append((time.perf_counter() - start) * 1e3)
    return Matched(statistics.median(times), operators)


def _vf2(graph: fx.Graph, pattern: fx.Graph) -> int:
    """Places where the operations of ``pattern`` stand in ``graph``, with edges from each value to its readers."""

    def flow(nodes: fx.Graph) -> nx.DiGraph:
        edges = nx.DiGraph()
        for node in nodes.nodes:
            if node.op in ("call_function", "call_method"):
                edges.add_node(node, name=op_name(node))
                edges.add_edges_from((read, node) for read in node.all_input_nodes if read in edges)
        return edges

    matcher = DiGraphMatcher(flow(graph), flow(pattern), node_match=lambda a, b: a["name"] == b["name"])
    return len({frozenset(mapping) for mapping in matcher.subgraph_monomorphisms_iter()})


class _FFN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False, device="meta") for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH, bias=False, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return result


def _capture_ffn() -> fx.GraphModule:
    return _grab(_FFN(), torch.empty(1, 48, WIDTH, device="meta"))[0]


def _capture(layers: int) -> tuple[fx.GraphModule, Sequence[Any]]:
    model = Decoder("", "Qwen3VLText", Geometry(layers, WIDTH, INNER, 4, 2, 16)).build("meta")

    def forward(hidden: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = model(inputs_embeds=mark_visual(hidden, mask), use_cache=False).last_hidden_state
        return result

    # The mask has data, so that its rows are counted for the report.
    return _grab(forward, torch.empty(1, 48, WIDTH, device="meta"), torch.arange(48)[None] < 32)


def _grab(call: Callable[..., Any], *inputs: Tensor) -> tuple[fx.GraphModule, Sequence[Any]]:
    kept: list[tuple[fx.GraphModule, Sequence[Any]]] = []

    def keep(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        kept.append((gm, example_inputs))
        return gm.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(call, backend=keep, fullgraph=True)(*inputs)
    return kept[0]
