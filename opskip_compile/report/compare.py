"""From a report to a graph diff: records of both graphs, and the report's facts as plain data beside them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import fx

from opskip_compile.passes.analysis.operators import operator_name
from opskip_compile.passes.graph.sizes import Sizes
from opskip_compile.passes.pipeline import Rewritten
from opskip_compile.report.diff import GraphDiff
from opskip_compile.report.record import record_graph
from opskip_compile.report.report import OperatorReport, Report
from opskip_compile.schedule.rules import OPERATORS


def compare(captured: fx.Graph, rewritten: Rewritten, report: Report) -> GraphDiff:
    """The diff of ``captured`` against ``rewritten.graph``, which is None where nothing was changed."""
    sizes = Sizes.of(captured, report.prompt)
    before = record_graph(captured, sizes)
    after = before if rewritten.graph is None else record_graph(rewritten.graph, sizes)
    return GraphDiff.compare(before, after, rewritten.state.match.owners(), report_facts(report))


def report_facts(report: Report) -> dict[str, Any]:
    """The report as a diff shows it: summary, layers, misses and stops. Nothing in it differs from run to run."""
    plain = report.to_dict()
    summary = ("schedule", "schedule_origin", "row_source", "reason", "num_layers", "prompt")
    counts = ("nodes_before", "nodes_after", "flops_before", "flops_after")
    return {
        "summary": {name: plain[name] for name in (*summary, *counts)},
        "layers": [
            {"layer": layer, "state": state, "operators": _operators(report, layer)}
            for layer, state in enumerate(report.layer_states())
        ],
        "misses": plain["misses"],
        "stops": plain["stops"],
    }


def _operators(report: Report, layer: int) -> list[dict[str, Any]]:
    """The cells of one layer in the layer strip: attention and FFN, in their order; what is absent stands last."""
    found = [op for op in report.operators if op.layer == layer]
    cells = [_cell(op.name, op.kind, op, report) for op in found]
    absent = [kind for kind in OPERATORS if all(op.kind != kind for op in found)]
    cells += [_cell(operator_name(layer, kind), kind, None, report) for kind in absent]
    return sorted(cells, key=lambda cell: OPERATORS.index(cell["kind"]))


def _cell(name: str, kind: str, op: OperatorReport | None, report: Report) -> dict[str, Any]:
    miss = next((miss for miss in report.misses if miss.operator == name.split("/")[0]), None)
    missed = miss is not None and (op is None or not op.skipped)
    facts = {} if op is None else asdict(op)
    names = ("rows", "rows_before", "rows_after", "flops_before", "flops_after", "entry", "exit")
    return {
        "name": name,
        "kind": kind,
        "state": "missed" if missed else "absent" if op is None else op.state,
        **{field: facts.get(field) for field in (*names, "entry_source", "exit_source")},
        "remaining": list(facts.get("remaining", ())),
        "reason": miss.reason if missed and miss is not None else "",
    }
