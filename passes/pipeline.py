"""The passes in their order, and the one function that runs them on a Dynamo graph.

normalize -> locate rows -> match -> plan -> insert -> push down -> cancel -> share rotary -> clean up. Analysis ends
with the plan; from then on every pass leaves a graph that computes the oracle's result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import fx

from opskip_compile.errors import RewriteError
from opskip_compile.passes.cancel import cancel
from opskip_compile.passes.crossing import ENCODER, crossing_without_rows
from opskip_compile.passes.insert import insert_skips
from opskip_compile.passes.leftover import remaining, rows_needed_in_full
from opskip_compile.passes.locate import RowSource, locate_rows
from opskip_compile.passes.match import Match, Operator, match_operators, source_line
from opskip_compile.passes.normalize import copy_graph, remove_dead
from opskip_compile.passes.ops import tensor
from opskip_compile.passes.outplace import write_out_of_place
from opskip_compile.passes.plan import Plan, make_plan
from opskip_compile.passes.pushdown import Pushdown
from opskip_compile.passes.report import OperatorReport, PassReport, Report
from opskip_compile.passes.rules import known_operations
from opskip_compile.passes.share_rotary import share_rotary_tables
from opskip_compile.schedule import Schedule

PASSES = ("normalize", "locate", "match", "plan", "insert", "push_down", "cancel", "share_rotary", "clean_up")
NO_ROWS = "no visual rows in this graph (text-only prompt, decode step or vision tower)"


@dataclass(frozen=True)
class Resolved:
    """A schedule and where it came from, for the decoder that was matched."""

    schedule: Schedule
    origin: str


@dataclass
class Rewritten:
    """The new graph, or None where nothing is skipped, and the report."""

    graph: fx.Graph | None
    report: Report
    source: RowSource | None = None


class _Clock:
    def __init__(self) -> None:
        self.passes: list[PassReport] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[list[int]]:
        changed = [0]
        start = time.perf_counter()
        yield changed
        self.passes.append(PassReport(name, (time.perf_counter() - start) * 1e3, changed[0]))


def rewrite(
    gm: fx.GraphModule,
    resolve: Callable[[Match, fx.Graph], Resolved],
    *,
    strict: bool = False,
    share_rotary: bool = True,
    mark_input: Callable[[fx.Graph], tuple[fx.Node, fx.Node] | None] | None = None,
    is_encoder: Callable[[Match], bool] | None = None,
    until: str = PASSES[-1],
) -> Rewritten:
    """Run the passes on a copy of ``gm.graph``.

    Args:
        gm: a graph that Dynamo captured, with example values.
        resolve: gives the schedule once the decoder is known.
        strict: raise where an operator of the schedule has to stay full.
        share_rotary: run the pass of that name.
        mark_input: adds the mask of an input that an earlier graph marked; called only if a mark exists.
        is_encoder: True if the operators are known to belong to the encoder of an encoder-decoder.
        until: the last pass to run; from ``"insert"`` on the graph is runnable after each.

    Raises:
        RewriteError: under ``strict``, with the node, its source line and the reason.
        ScheduleError: the schedule does not fit the decoder.
    """
    clock = _Clock()
    report = Report(nodes_before=len(gm.graph.nodes))
    report.nodes_after = report.nodes_before

    def unchanged(reason: str, source: RowSource | None = None) -> Rewritten:
        report.reason, report.passes = reason, tuple(clock.passes)
        return Rewritten(None, report, source)

    with clock("normalize") as changed:
        graph = copy_graph(gm)
        changed[0] = write_out_of_place(graph) + remove_dead(graph)
    with clock("locate"):
        source = locate_rows(graph)
        if source is None and mark_input is not None:
            marked = mark_input(graph)
            source = locate_rows(graph, marked) if marked is not None else None
    if source is None:
        return unchanged(crossing_without_rows(graph, known_operations()) or NO_ROWS)
    report.row_source = source.kind
    with clock("match"):
        match = match_operators(source.root)
        if is_encoder is not None and is_encoder(match):
            match = Match(doubt=ENCODER)
    report.num_layers = match.num_layers
    report.operators = tuple(_operator_report(op) for op in match.operators)
    if not match.operators:
        return unchanged(match.doubt or "visual rows are known, but no operator returns to their stream", source)
    with clock("plan"):
        resolved = resolve(match, graph)
        if match.doubt and resolved.schedule.num_layers != match.num_layers:
            return unchanged(match.doubt, source)
        report.schedule = resolved.schedule.name or resolved.schedule.to_spec()
        report.schedule_origin = resolved.origin
        plan = make_plan(match, resolved.schedule, source)
    report.misses = plan.misses
    if strict and plan.misses:
        miss = plan.misses[0]
        raise RewriteError(f"{miss.layer}.{miss.kind} stays full at {miss.node or '-'} ({miss.source}): {miss.reason}")
    if not plan.skips:
        return unchanged("the schedule skips nothing here" if not plan.misses else plan.misses[0].reason, source)
    skipped = {skip.operator for skip in plan.skips}
    # Parallel operators share their norm: what one of them needs in full is not left over by the other.
    in_full = {op: rows_needed_in_full(op) if op in skipped else (op.branch,) for op in match.operators}
    every_row = {op: [n for o in in_full if o.exit is op.exit for n in in_full[o]] for op in skipped}
    _transform(graph, plan, source, clock, report, PASSES.index(until))
    if share_rotary and PASSES.index(until) >= PASSES.index("share_rotary"):
        with clock("share_rotary") as changed:
            changed[0] = share_rotary_tables(graph, source.root)
    if until == PASSES[-1]:
        with clock("clean_up") as changed:
            changed[0] = remove_dead(graph)
    graph.lint()
    alive = frozenset(graph.nodes)
    left = {op: remaining(op, every_row[op], alive) for op in every_row}
    report.operators = tuple(_operator_report(op, plan, left.get(op, ())) for op in match.operators)
    report.nodes_after, report.passes = len(graph.nodes), tuple(clock.passes)
    return Rewritten(graph, report, source)


def _transform(graph: fx.Graph, plan: Plan, source: RowSource, clock: _Clock, report: Report, last: int) -> None:
    root = tensor(source.root)
    assert root is not None
    with clock("insert") as changed:
        row_sets = insert_skips(graph, plan, source)
        changed[0] = len(plan.skips)
    if last >= PASSES.index("push_down"):
        with clock("push_down") as changed:
            pushdown = Pushdown(graph, row_sets, root)
            report.stops = tuple(pushdown.run())
            changed[0] = pushdown.pushed
    if last >= PASSES.index("cancel"):
        with clock("cancel") as changed:
            changed[0] = cancel(graph)


def _operator_report(op: Operator, plan: Plan | None = None, remaining: tuple[str, ...] = ()) -> OperatorReport:
    rows = next((s.rows for s in plan.skips if s.operator is op), None) if plan is not None else None
    left = remaining if rows is not None else ()
    return OperatorReport(
        op.layer, op.kind, rows is not None, rows, op.entry.name, op.exit.name, source_line(op.exit), left
    )
