"""What the passes share: the graph, what is known of it so far, and what they were asked to do.

A pass is an object with a name, the facts that it needs, the facts that hold after it, and one function of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import fx

from opskip_compile.passes.analysis.locate import RowSource
from opskip_compile.passes.analysis.merges import RowTokens
from opskip_compile.passes.analysis.operators import Match, Operator
from opskip_compile.passes.analysis.plan import Plan
from opskip_compile.passes.analysis.remaining import Leftover
from opskip_compile.passes.refusal import Refusal
from opskip_compile.passes.rewrite.selection import RowSet
from opskip_compile.schedule.schedule import Schedule


class Fact(Enum):
    """What holds of a state."""

    NORMALIZED = "one form per operation, and nothing that no result depends on"
    ROWS = "the visual rows are known"
    OPERATORS = "the operators are matched"
    PLAN = "what to skip is decided"
    DEFINITION = "the graph computes the oracle's result"
    PUSHED = "the selections are as near to the inputs as they go"
    CLEAN = "nothing is left that no result depends on"


@dataclass(frozen=True)
class Resolved:
    """A schedule and where it came from, for the decoder that was matched."""

    schedule: Schedule
    origin: str


MarkInput = Callable[[fx.Graph], tuple[fx.Node, fx.Node] | None]


@dataclass(frozen=True)
class Options:
    """What the passes are asked to do.

    Attributes:
        resolve: gives the schedule once the decoder is known.
        strict: raise where an operator of the schedule has to stay full.
        share_rotary, causal, onednn, regions: run the pass of that name.
        mark_input: adds the mask of an input that an earlier graph marked; called only if a mark exists.
        is_encoder: True if the operators are known to belong to the encoder of an encoder-decoder.
        is_decoder: True if the operators are known to belong to a model of text.
        layer: number and count, if the graph is known to hold one layer of a decoder.
        num_layers: layers of the decoder, if they are known.
        tokens: tell whose features a graph merges.
    """

    resolve: Callable[[Match, fx.Graph], Resolved]
    strict: bool = False
    share_rotary: bool = True
    causal: bool = False
    onednn: bool = False
    regions: bool = False
    mark_input: MarkInput | None = None
    is_encoder: Callable[[Match], bool] | None = None
    is_decoder: Callable[[Match], bool] | None = None
    layer: tuple[int, int] | None = None
    num_layers: int | None = None
    tokens: RowTokens | None = None


@dataclass
class State:
    """One run of the passes over one graph.

    Attributes:
        module: owns the graph; regions become its submodules.
        captured: the graph as Dynamo captured it, never changed.
        graph: the copy that the passes change.
        options: what was asked for.
        facts: what holds by now.
        source: where the visual rows are named.
        match: the operators.
        groups: of processes that exchange values in operators, or in a decoder without matched ones.
        resolved: the schedule.
        plan: what is skipped, and what can't be.
        leftover: what skipped operators compute in full by definition.
        row_sets: the nodes of each row index, by name.
        stops: where selections stopped early.
        remaining: costly operations that a skipped operator still does for every row.
        regions: the graph with one region for layers that are alike, if there are any.
        refusal: why the graph stays as it was captured; ends the run.
    """

    module: fx.GraphModule
    captured: fx.Graph
    graph: fx.Graph
    options: Options
    facts: set[Fact] = field(default_factory=set)
    source: RowSource | None = None
    match: Match = field(default_factory=Match)
    groups: Sequence[str] = ()
    resolved: Resolved | None = None
    plan: Plan = field(default_factory=lambda: Plan((), (), ()))
    leftover: Leftover | None = None
    row_sets: Mapping[str, RowSet] = field(default_factory=dict)
    stops: Sequence[Refusal] = ()
    remaining: Mapping[Operator, tuple[str, ...]] = field(default_factory=dict)
    regions: fx.Graph | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Pass:
    """One step.

    Attributes:
        name: as in reports, dumps and ``until``.
        run: changes the state; returns how many nodes it changed.
        requires: facts that have to hold before.
        ensures: facts that hold afterwards.
        option: the option that it is run for; empty if it always runs.
    """

    name: str
    run: Callable[[State], int]
    requires: frozenset[Fact] = frozenset()
    ensures: frozenset[Fact] = frozenset()
    option: str = ""


@dataclass(frozen=True)
class PassReport:
    """Name, wall-clock milliseconds and changed nodes of one pass."""

    name: str
    milliseconds: float
    changed: int
