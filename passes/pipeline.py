"""The passes in their order, and the one function that runs them on a Dynamo graph.

normalize -> locate rows -> match -> plan -> insert -> push down -> cancel -> share rotary -> clean up -> causal.
Analysis ends with the plan; from then on every pass leaves a graph that computes the oracle's result. The report comes
last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from opskip_compile.errors import RewriteError
from opskip_compile.passes.analysis.cross_attention import ENCODER, crossing_without_rows
from opskip_compile.passes.analysis.locate import RowSource, locate_rows
from opskip_compile.passes.analysis.match import Match, as_layer, match_operators, part_without_rows
from opskip_compile.passes.analysis.plan import Plan, make_plan
from opskip_compile.passes.analysis.remaining import Leftover
from opskip_compile.passes.normalize.cleanup import copy_graph, remove_dead
from opskip_compile.passes.normalize.functionalize import write_out_of_place
from opskip_compile.passes.normalize.unflatten import add_unflattened
from opskip_compile.passes.ops import known_operations
from opskip_compile.passes.ops.nodes import tensor
from opskip_compile.passes.rewrite.cancel import cancel
from opskip_compile.passes.rewrite.insert import insert_skips
from opskip_compile.passes.rewrite.pushdown import Pushdown, Stop
from opskip_compile.passes.tune.causal import ask_for_causal_masks
from opskip_compile.passes.tune.rotary import share_rotary_tables
from opskip_compile.report.compare import compare
from opskip_compile.report.operators import Facts
from opskip_compile.report.report import PassReport, Report
from opskip_compile.schedule.schedule import Schedule

PASSES = (
    *("normalize", "locate", "match", "plan"),
    *("insert", "push_down", "cancel", "share_rotary", "clean_up", "causal"),
)
MarkInput = Callable[[fx.Graph], tuple[fx.Node, fx.Node] | None]
PART_WITHOUT_ROWS = (
    "the graph starts and ends in a decoder's residual stream, as with a layer that was compiled alone, and no graph "
    "before it named visual rows; opskip_compile.compile(model, regional=True) compiles layer by layer and names them"
)
NO_ROWS = (
    "no visual rows in this graph (text-only prompt, decode step or vision tower; "
    "or a decoder compiled alone, without mark_visual)"
)


@dataclass(frozen=True)
class Resolved:
    """A schedule and where it came from, for the decoder that was matched."""

    schedule: Schedule
    origin: str


@dataclass
class Rewritten:
    """The new graph, or None where nothing is skipped, and the report.

    Attributes:
        owners: name of a captured node -> the operator that it belongs to.
        regions: the new graph with one region for layers that are alike, if there are any.
    """

    graph: fx.Graph | None
    report: Report
    source: RowSource | None = None
    owners: Mapping[str, str] = field(default_factory=dict)
    regions: fx.Graph | None = None


class _Clock:
    """Times passes; the report is made in two parts, which count as one and come last."""

    def __init__(self) -> None:
        self._passes: dict[str, PassReport] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[list[int]]:
        changed = [0]
        start = time.perf_counter()
        yield changed
        before = self._passes.pop(name, PassReport(name, 0.0, 0))
        time_taken = before.milliseconds + (time.perf_counter() - start) * 1e3
        self._passes[name] = PassReport(name, time_taken, before.changed + changed[0])

    @property
    def passes(self) -> tuple[PassReport, ...]:
        return tuple(sorted(self._passes.values(), key=lambda done: done.name == "report"))


def rewrite(
    gm: fx.GraphModule,
    resolve: Callable[[Match, fx.Graph], Resolved],
    *,
    strict: bool = False,
    share_rotary: bool = True,
    causal: bool = False,
    mark_input: MarkInput | None = None,
    inputs: Sequence[Any] | None = None,
    is_encoder: Callable[[Match], bool] | None = None,
    layer: tuple[int, int] | None = None,
    until: str = PASSES[-1],
) -> Rewritten:
    """Run the passes on a copy of ``gm.graph``.

    Args:
        gm: a graph that Dynamo captured, with example values.
        resolve: gives the schedule once the decoder is known.
        strict: raise where an operator of the schedule has to stay full.
        share_rotary, causal: run the pass of that name.
        mark_input: adds the mask of an input that an earlier graph marked; called only if a mark exists.
        inputs: the values of this call, that of a marked input's mask last; only the report reads them.
        is_encoder: True if the operators are known to belong to the encoder of an encoder-decoder.
        layer: number and count, if the graph is known to hold one layer of a decoder.
        until: the last pass to run; from ``"insert"`` on the graph is runnable after each.

    Raises:
        RewriteError: under ``strict``, with the node, its source line and the reason.
        ScheduleError: the schedule does not fit the decoder.
    """
    made: list[Resolved] = []

    def resolve_once(match: Match, graph: fx.Graph) -> Resolved:
        if not made:
            made.append(resolve(match, graph))
        return made[0]

    def again(inputs: Sequence[Any] | None) -> Rewritten:
        last = PASSES.index(until)
        return _rewrite(captured, resolve_once, strict, chosen, mark_input, is_encoder, layer, inputs, last)

    captured = gm.graph
    chosen = {"share_rotary": share_rotary, "causal": causal}
    result = again(inputs)
    # The same passes on the same graph give the same result, so nothing has to be kept for a diff but the graph.
    result.report.make_diff = lambda report: compare(captured, again(None), report)
    return result


def _rewrite(
    captured: fx.Graph,
    resolve: Callable[[Match, fx.Graph], Resolved],
    strict: bool,
    chosen: Mapping[str, bool],
    mark_input: MarkInput | None,
    is_encoder: Callable[[Match], bool] | None,
    layer: tuple[int, int] | None,
    inputs: Sequence[Any] | None,
    last: int,
) -> Rewritten:
    clock, report = _Clock(), Report(nodes_before=len(captured.nodes), nodes_after=len(captured.nodes))
    with clock("normalize") as changed:
        graph = copy_graph(captured)
        changed[0] = write_out_of_place(graph) + add_unflattened(graph) + remove_dead(graph)
    with clock("locate"):
        source = locate_rows(graph)
        if mark_input is not None and (source is None or source.kind == "masked_scatter"):
            marked = mark_input(graph)
            source = locate_rows(graph, marked)
            if marked is not None and (source is None or source.marked is None):
                graph.erase_node(marked[1])
    if source is None:
        part = PART_WITHOUT_ROWS if layer is None and part_without_rows(graph) else ""
        report.reason = crossing_without_rows(graph, known_operations()) or part or NO_ROWS
        report.passes = clock.passes
        return Rewritten(None, report)
    report.row_source = source.kind
    with clock("match"):
        match = match_operators(source.root)
        if is_encoder is not None and is_encoder(match):
            match = Match(doubt=ENCODER)
        if layer is not None:
            match = as_layer(match, *layer)
    with clock("report"):
        facts = Facts.of(graph, source, match, inputs)
        report.num_layers, report.prompt, report.operators = match.num_layers, facts.prompt, facts.operators()

    def unchanged(reason: str) -> Rewritten:
        report.reason, report.passes = reason, clock.passes
        return Rewritten(None, report, source, facts.owners)

    if not match.operators:
        return unchanged(match.doubt or "visual rows are known, but no operator returns to their stream")
    with clock("plan"):
        resolved = resolve(match, graph)
        if match.doubt and resolved.schedule.num_layers != match.num_layers:
            return unchanged(match.doubt)
        report.schedule = resolved.schedule.name or resolved.schedule.to_spec()
        report.schedule_origin = resolved.origin
        plan = make_plan(match, resolved.schedule, source)
    report.misses = plan.misses
    if strict and plan.misses:
        miss = plan.misses[0]
        raise RewriteError(f"{miss.layer}.{miss.kind} stays full at {miss.node or '-'} ({miss.source}): {miss.reason}")
    if not plan.skips:
        return unchanged("the schedule skips nothing here" if not plan.misses else plan.misses[0].reason)
    left = Leftover.of(match.operators, [skip.operator for skip in plan.skips])
    report.stops = _transform(graph, plan, source, clock, facts.owners, last)
    if chosen["share_rotary"] and last >= PASSES.index("share_rotary"):
        with clock("share_rotary") as changed:
            changed[0] = share_rotary_tables(graph, source.root)
    if last >= PASSES.index("clean_up"):
        with clock("clean_up") as changed:
            changed[0] = remove_dead(graph)
    with clock("report"):
        alive = frozenset(graph.nodes)
        remaining = {skip.operator: left.remaining(skip.operator, alive) for skip in plan.skips}
    if chosen["causal"] and last >= PASSES.index("causal"):
        with clock("causal") as changed:
            changed[0] = ask_for_causal_masks(graph)
    graph.lint()
    with clock("report"):
        report.operators = facts.operators(plan, graph, remaining.__getitem__)
        report.nodes_after = len(graph.nodes)
    report.passes = clock.passes
    return Rewritten(graph, report, source, facts.owners)


def _transform(
    graph: fx.Graph, plan: Plan, source: RowSource, clock: _Clock, owners: Mapping[str, str], last: int
) -> tuple[Stop, ...]:
    root = tensor(source.root)
    assert root is not None
    stops: tuple[Stop, ...] = ()
    with clock("insert") as changed:
        row_sets = insert_skips(graph, plan, source)
        changed[0] = len(plan.skips)
    if last >= PASSES.index("push_down"):
        with clock("push_down") as changed:
            pushdown = Pushdown(graph, row_sets, root, owners)
            stops, changed[0] = tuple(pushdown.run()), pushdown.pushed
    if last >= PASSES.index("cancel"):
        with clock("cancel") as changed:
            changed[0] = cancel(graph)
    return stops
