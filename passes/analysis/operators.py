"""What matching finds: the operators of a decoder, in order, and what could not be matched."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from opskip_compile.passes.graph.origin import captured_place
from opskip_compile.passes.refusal import Refusal


@dataclass(frozen=True)
class Operator:
    """One operator of one layer: ``exit = entry + branch``.

    Attributes:
        layer: zero-based layer number.
        kind: ``"attention"`` or ``"ffn"``.
        entry: the residual operand of the addition, ``(batch, sequence, width)``.
        branch: the operator's output, the other operand.
        exit: the addition.
        summands: everything that the exit adds up, the entry and the branch among them, in order.
        region: every node that is computed from the entry for the branch.
        number: 1, or more where a layer has several of the kind, one after the other.
    """

    layer: int
    kind: str
    entry: fx.Node
    branch: fx.Node
    exit: fx.Node
    summands: tuple[fx.Node, ...]
    region: tuple[fx.Node, ...]
    number: int = 1

    @property
    def name(self) -> str:
        """``"17.ffn"`` and the like; ``"17.ffn/2"`` for a second one."""
        return operator_name(self.layer, self.kind, self.number)


def operator_name(layer: int, kind: str, number: int = 1) -> str:
    """How reports and commands name an operator."""
    return f"{layer}.{kind}" if number == 1 else f"{layer}.{kind}/{number}"


@dataclass
class Match:
    """The operators of a graph, in order, and what was not matched.

    Attributes:
        operators: those that may be skipped.
        unmatched: those of the misses; never rewritten.
        misses: why they are none.
        num_layers: layers of the decoder.
        doubt: why the layer numbers may be wrong, unless the schedule confirms their count; or why there is none.
        other_sums: layer -> an addition to the stream that is no operator.
        only: the one layer of the decoder that this graph holds.
    """

    operators: list[Operator] = field(default_factory=list)
    unmatched: list[Operator] = field(default_factory=list)
    misses: list[Refusal] = field(default_factory=list)
    num_layers: int = 0
    doubt: Refusal | None = None
    other_sums: dict[int, str] = field(default_factory=dict)
    only: int | None = None

    def named(self, layer: int, kind: str) -> list[Operator]:
        """All operators of that layer and kind."""
        return [op for op in self.operators if op.layer == layer and op.kind == kind]

    def everything(self) -> list[Operator]:
        """The matched operators and, beside them, those that could not be matched, in the order of the layers."""
        return sorted(self.operators + self.unmatched, key=lambda op: op.layer) if self.operators else []

    def owners(self) -> dict[str, str]:
        """Name of a captured node -> its operator. What parallel operators share is the first's; an exit its last's."""
        owners: dict[str, str] = {}
        for op in self.everything():
            for node in op.region:
                owners.setdefault(captured_place(node), op.name)
        owners.update((captured_place(op.exit), op.name) for op in self.everything())
        return owners
