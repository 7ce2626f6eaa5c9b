"""From what the passes return to a report: rows and FLOPs of every operator in the captured and in the rewritten graph.

Everything is read off the two graphs; nothing here takes part in the rewrite.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from opskip_compile.passes.analysis.flops import count_by_operator
from opskip_compile.passes.analysis.operators import Operator
from opskip_compile.passes.analysis.prompt import read_prompt
from opskip_compile.passes.graph.origin import captured_place, source_line
from opskip_compile.passes.graph.sizes import Prompt, Sizes
from opskip_compile.passes.levels import forget
from opskip_compile.passes.pipeline import Rewritten
from opskip_compile.passes.refusal import Refusal, Why
from opskip_compile.passes.state import PassReport, State
from opskip_compile.report.compare import compare
from opskip_compile.report.report import OperatorReport, Report


def make_report(result: Rewritten, inputs: Sequence[Any] | None = None, recompile: str = "") -> Report:
    """The report of one run of the passes.

    Args:
        result: of the run.
        inputs: the values of this call, that of a marked input's mask last; without them its rows stay open.
        recompile: why Dynamo compiled this function again.
    """
    start = time.perf_counter()
    state, graph = result.state, result.graph
    captured, source = state.captured, state.source
    prompt = None
    if inputs is not None and source is not None and state.match.operators:
        prompt = read_prompt(state.graph, source, inputs)
    nodes = len(captured.nodes)
    if state.plan.levels is not None:
        forget(state.plan.levels.digest)
    report = Report(
        refusal=state.refusal,
        recompile=recompile,
        schedule="" if state.resolved is None else state.resolved.schedule.name or state.resolved.schedule.to_spec(),
        schedule_origin="" if state.resolved is None else state.resolved.origin,
        digest="" if state.plan.levels is None else state.plan.levels.digest,
        row_source="" if source is None else source.kind,
        prompt=prompt,
        num_layers=state.match.num_layers,
        operators=_operators(state, graph, prompt),
        misses=state.plan.misses,
        stops=tuple(state.stops),
        nodes_before=nodes,
        nodes_after=nodes if graph is None else len(graph.nodes),
        make_diff=lambda report: compare(captured, result.again(), report),
    )
    making = PassReport("report", (time.perf_counter() - start) * 1e3, 0)
    return replace(report, passes=(*result.passes, making))


def failed_report(reason: str, captured: fx.Graph) -> Report:
    """The report of a graph that is lowered as it was captured, because of an error."""
    nodes = len(captured.nodes)
    return Report(refusal=Refusal(Why.FAILED, reason), nodes_before=nodes, nodes_after=nodes)


def _operators(state: State, rewritten: fx.Graph | None, prompt: Prompt | None) -> tuple[OperatorReport, ...]:
    """One entry per operator, in order."""
    owners = state.match.owners()
    sizes = Sizes.of(state.captured, prompt)
    before = count_by_operator(state.captured, owners, sizes)
    after = before if rewritten is None else count_by_operator(rewritten, owners, sizes)
    rows: Mapping[str, str] = {skip.operator.name: str(skip.left_out) for skip in state.plan.skips}
    full = None if prompt is None else prompt.rows
    by_name: dict[str, list[Operator]] = {}
    for part in state.match.everything():
        by_name.setdefault(part.name, [part]).append(part)
    return tuple(
        OperatorReport(
            layer=op.layer,
            kind=op.kind,
            number=op.number,
            rows=rows.get(op.name),
            entry=captured_place(op.entry),
            exit=captured_place(op.exit),
            entry_source=source_line(op.entry),
            exit_source=source_line(op.exit),
            rows_before=full,
            rows_after=prompt.kept(rows[op.name]) if prompt is not None and op.name in rows else full,
            flops_before=None if before is None else before[op.name],
            flops_after=None if after is None else after[op.name],
            remaining=tuple(name for part in parts for name in state.remaining.get(part, ())),
        )
        for op, *parts in by_name.values()
    )
