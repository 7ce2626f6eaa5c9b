"""A graph diff in formats that other tools read: networkx, GraphML and Graphviz."""

from __future__ import annotations

from pathlib import Path

import networkx as nx

from opskip_compile.output.files import write_whole
from opskip_compile.report.diff_data import DiffData
from opskip_compile.report.record import NodeRecord

_COLOURS = {
    "kept": "#d9dde3",
    "changed": "#f2c14e",
    "rewired": "#8ab6f0",
    "added": "#7fc99b",
    "removed": "#e8938a",
}


def to_networkx(diff: DiffData) -> nx.DiGraph:
    """The union of both graphs; what was paired is one node.

    Node attributes: ``status``, ``operator`` (or the name of the group), ``operation``, ``before``, ``after`` (names),
    ``code_before``, ``code_after``, ``shape_before``, ``shape_after``, ``source``. Edge attribute: ``status`` is kept,
    added or removed. Texts are empty where there is nothing to say.
    """
    graph = nx.DiGraph()
    name_of_before: dict[str, str] = {}
    for group in diff.groups:
        for line in group.lines:
            before, after = line.before, line.after
            record = after or before
            assert record is not None
            # A removed node may have the name of an added one.
            name = line.name if after is not None else f"{line.name} (removed)"
            if before is not None:
                name_of_before[before.name] = name
            graph.add_node(
                name,
                status=line.status,
                operator=group.name,
                operation=record.operation,
                before="" if before is None else before.name,
                after="" if after is None else after.name,
                code_before="" if before is None else before.code,
                code_after="" if after is None else after.code,
                shape_before=shape_text(before),
                shape_after=shape_text(after),
                source=record.source,
            )
    for record in diff.before:
        for operand in record.operands:
            graph.add_edge(name_of_before[operand], name_of_before[record.name], status="removed")
    for record in diff.after:
        for operand in record.operands:
            there = graph.has_edge(operand, record.name)
            graph.add_edge(operand, record.name, status="kept" if there else "added")
    return graph


def to_dot(diff: DiffData, operator: str | None = None) -> str:
    """Graphviz text; one cluster an operator. With ``operator`` only its nodes and what they read and feed."""
    graph = to_networkx(diff)
    groups = [group.name for group in diff.groups if operator in (None, group.name)]
    shown = {name for name, group in graph.nodes(data="operator") if group in groups}
    if operator is not None:
        shown |= {end for edge in graph.edges if not shown.isdisjoint(edge) for end in edge}
    lines = ["digraph opskip {", '  node [shape=box, style=filled, fontname="monospace", fontsize=10];']
    clusters: dict[str, list[str]] = {}
    for name, data in graph.nodes(data=True):
        if name in shown:
            shape = data["shape_after"] or data["shape_before"]
            shrunk = data["status"] == "changed" and data["shape_before"] != data["shape_after"]
            label = "\n".join(
                filter(None, (name, data["operation"], f"{data['shape_before']} -> {shape}" if shrunk else shape))
            )
            node = f"    {_quoted(name)} [label={_quoted(label)}, fillcolor={_quoted(_COLOURS[data['status']])}];"
            clusters.setdefault(data["operator"], []).append(node)
    for i, (name, nodes) in enumerate(clusters.items()):
        lines += [f"  subgraph cluster_{i} {{", f"    label={_quoted(name)};", *nodes, "  }"]
    for tail, head, status in graph.edges(data="status"):
        if tail in shown and head in shown:
            style = {"kept": "", "added": ' [color="#2e8b57"]', "removed": ' [color="#c0392b", style=dashed]'}[status]
            lines.append(f"  {_quoted(tail)} -> {_quoted(head)}{style};")
    return "\n".join([*lines, "}"]) + "\n"


def write_graphml(diff: DiffData, path: Path) -> None:
    """Write the union graph as GraphML, with the summary as attributes of the graph."""
    graph = to_networkx(diff)
    graph.graph.update({key: value for key, value in diff.facts["summary"].items() if isinstance(value, str | int)})
    write_whole(path, "\n".join(nx.generate_graphml(graph)) + "\n")


def shape_text(record: NodeRecord | None) -> str:
    """``1x1089x192``; empty if unknown."""
    return "" if record is None or record.shape is None else "x".join(map(str, record.shape)) or "scalar"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
