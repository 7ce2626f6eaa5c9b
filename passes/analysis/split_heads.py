"""Which processes have the other heads of an attention, where each of them has a part: told by the sharded weights.

Scores of rows are means over all heads, so that they have to be put together before rows are chosen by them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

from opskip_compile._compat import collectives
from opskip_compile.passes.analysis.operators import Match
from opskip_compile.passes.analysis.scored import Scored
from opskip_compile.passes.collectives import EXCHANGES
from opskip_compile.passes.ops import having, name_of, op_name, operand, products, tensor
from opskip_compile.passes.ops.operation import Trait
from opskip_compile.passes.refusal import Refusal, Why

SPREAD = Refusal(
    Why.SPREAD,
    "the layers compute with DTensors, as transformers' tensor parallel does while gradients are recorded, and where a "
    "plan has the style sequence_parallel; else, under torch.no_grad(), it computes with the part of each process, and "
    "rows can be left out",
)


def group_of_heads(graph: fx.Graph, match: Match, attentions: Sequence[Scored]) -> str | None:
    """The group whose processes have equal parts of the heads of all ``attentions``.

    Empty where no processes take part in the graph; None if some do, and it can't be told which have what.
    """
    if not any(_exchanges(node) or collectives.is_spread(tensor(node)) for node in graph.nodes):
        return ""
    inside = {node for operator in match.everything() if operator.kind == "attention" for node in operator.region}
    groups = {_group_of(each.call.operand(name), inside) for each in attentions for name in ("query", "key")}
    return groups.pop() if len(groups) == 1 else None


def _exchanges(node: fx.Node) -> bool:
    return node.target in EXCHANGES or collectives.is_collective(node.target)


def _group_of(value: fx.Node, inside: Collection[fx.Node]) -> str | None:
    """The group that the features of ``value`` are spread over by the products that make it of the stream, else None.

    What is made of anything else is not asked: tables of positions, keys of earlier turns.
    """
    groups: set[str | None] = set()
    seen, stack = {value}, [value]
    while stack:
        node = stack.pop()
        if _exchanges(node) or collectives.is_spread(tensor(node)):
            return None
        if op_name(node) in products():
            groups.add(_spread_by(operand(node, "weight")) if op_name(node) == "linear" else None)
            continue
        new = [read for read in node.all_input_nodes if read in inside and read not in seen]
        seen.update(new)
        stack += new
    return groups.pop() if len(groups) == 1 else None


def _spread_by(weight: fx.Node | None) -> str | None:
    while weight is not None and op_name(weight) in having(Trait.CAST):
        weight = operand(weight)
    whole = operand(weight) if weight is not None and op_name(weight) == "to_local" else None
    return None if whole is None else collectives.group_of_shards(tensor(whole), 0)


def why_spread(graph: fx.Graph) -> Refusal | None:
    """Why the operators of a graph can't be told if what they compute with is spread over processes as a DTensor."""
    for node in graph.nodes:
        if node.op != "placeholder" and collectives.is_spread(tensor(node)):
            return SPREAD.at(node, name_of(node))
    return None
