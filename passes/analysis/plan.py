"""Schedule times operators: what this graph skips, and what it can not.

Nothing is rewritten here. Every (layer, operator) that the schedule names gets either a decision or a reason.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.analysis.locate import RowSource
from opskip_compile.passes.analysis.operators import Match, Operator, operator_name
from opskip_compile.passes.analysis.scored import (
    LEVEL_LATE,
    Scored,
    before_layers,
    late_nodes,
    level_known,
    scored_attentions,
    unscored_attentions,
    why_unscored,
)
from opskip_compile.passes.analysis.split_heads import group_of_heads
from opskip_compile.passes.ops import is_inplace, mutated_nodes, name_of, tensor
from opskip_compile.passes.refusal import Refusal, Why
from opskip_compile.schedule.chooser import Chooser
from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.rules import LayerStates
from opskip_compile.schedule.schedule import Schedule


@dataclass(frozen=True)
class Skip:
    """One operator to skip, and the rows that it leaves out."""

    operator: Operator
    left_out: LeftOut


@dataclass(frozen=True)
class Choosing:
    """The chooser of a schedule, and where the choice is made.

    Attributes:
        digest: of the schedule.
        hidden: what enters the first layer.
        first: the first node of an operator.
        late: nodes behind it that the choice needs, in order; they can be computed before it.
    """

    chooser: Chooser
    digest: str
    hidden: fx.Node
    first: fx.Node
    late: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The layer states of the schedule, the skips that will be inserted and the operators that stay full.

    Attributes:
        attentions: those that give the scores of keep shares.
        levels: how each prompt finds its level; None if the schedule has none.
        heads: the group of processes each of which has a part of the heads of these attentions; empty if all are here.
    """

    states: tuple[LayerStates, ...]
    skips: tuple[Skip, ...]
    misses: tuple[Refusal, ...]
    attentions: tuple[Scored, ...] = ()
    levels: Choosing | None = None
    heads: str = ""

    @property
    def number(self) -> int:
        """Stands for all skips; the same in every process."""
        text = " ".join(f"{skip.operator.name}:{skip.left_out}" for skip in self.skips)
        return zlib.crc32(text.encode())


def make_plan(match: Match, schedule: Schedule, source: RowSource) -> Plan:
    """Decide for every operator of the schedule.

    Raises:
        ScheduleError: the schedule is made for another number of layers.
    """
    states = schedule.resolve(match.num_layers)
    order = {node: i for i, node in enumerate(source.root.graph.nodes)}
    known = max(order[mask] for mask in source.masks)
    mutated = mutated_nodes(source.root.graph)
    skips: list[Skip] = []
    misses: list[Refusal] = []
    missed = {(m.layer, m.kind): m for m in match.misses}
    keeps = any(left_out.chooses for state in states for left_out in (state.attention, state.ffn) if left_out)
    attentions = scored_attentions(match, source) if keeps else ()
    unscored = unscored_attentions(attentions, source) if keeps else ()
    heads = group_of_heads(source.root.graph, match, attentions) if keeps else ""
    leveled = bool(schedule.levels) and level_known(match, attentions, order, known)
    for layer, state in enumerate(states):
        for kind, left_out in (("attention", state.attention), ("ffn", state.ffn)):
            if left_out is None or match.only not in (None, layer):
                continue
            operators = match.named(layer, kind)
            if not operators:
                reason = "no branch of this layer returns to the residual stream and holds such a product"
                nearest = match.other_sums.get(layer, "")
                absent = Refusal(Why.NO_OPERATOR, reason, operator=operator_name(layer, kind), nearest=nearest)
                misses.append(missed.get((layer, kind)) or absent)
            for operator in operators:
                unsafe = _unsafe(operator, source, order, known, mutated)
                if unsafe is None and left_out.chooses:
                    unsafe = why_unscored(operator, match, attentions, unscored, order, known, heads is None)
                if unsafe is None and left_out.shares and not leveled:
                    unsafe = LEVEL_LATE
                if unsafe is None:
                    skips.append(Skip(operator, left_out))
                else:
                    exit_ = operator.exit
                    nearest = f"{operator.entry.name} -> {exit_.name}, matched, but not safe to skip"
                    miss = Refusal(Why.UNSAFE, unsafe, nearest=nearest)
                    misses.append(miss.at(exit_, name_of(exit_), operator_name(layer, kind)))
    levels = None
    if schedule.chooser is not None and any(skip.left_out.shares for skip in skips):
        first = min((node for operator in match.everything() for node in operator.region), key=order.__getitem__)
        late = late_nodes(attentions[0], order, order[first]) or ()
        levels = Choosing(schedule.chooser, schedule.digest, before_layers(match, order), first, late)
    return Plan(states, tuple(skips), tuple(misses), attentions, levels, heads or "")


def _unsafe(
    operator: Operator, source: RowSource, order: dict[fx.Node, int], known: int, mutated: frozenset[fx.Node]
) -> str | None:
    """Why this operator has to stay full, or None."""
    entry, branch, stream = tensor(operator.entry), tensor(operator.branch), tensor(source.root)
    if entry is None or branch is None or stream is None:
        return "its shapes are not known"
    for value in (entry, branch):
        if value.dim() != 3 or not all(same_size(value.shape[d], stream.shape[d]) for d in (0, 1)):
            return "its rows are not the rows of the residual stream"
    if is_inplace(operator.exit):
        return "it is added in place, and the same memory may be read under another name"
    if len(operator.summands) > 2 and not mutated.isdisjoint(operator.summands):
        return "one of its summands is mutated in place"
    if order[operator.exit] < known:
        return "it runs before the visual mask is known in this graph"
    return None
