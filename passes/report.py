"""What one compile did: every operator with its state, everything that stayed full with its reason, and the cost.

`Report` is made by the pipeline and is plain data, the same whether the graph was lowered or only explained.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from opskip_compile.passes.match import Miss
from opskip_compile.passes.pushdown import Stop


@dataclass(frozen=True)
class OperatorReport:
    """One operator of the decoder.

    Attributes:
        layer, kind: which one.
        skipped: False if it stays full.
        rows: ``"visual"`` or ``"through_visual"`` where skipped.
        entry, exit: names of the nodes between which it stands; ``source`` is the line of the exit.
        remaining: operations of the operator that still run on every row although it is skipped, by name. Keys and
            values and what only they need do not count: the KV cache keeps every row.
    """

    layer: int
    kind: str
    skipped: bool
    rows: str | None
    entry: str
    exit: str
    source: str
    remaining: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``"17.ffn"`` and the like."""
        return f"{self.layer}.{self.kind}"


@dataclass(frozen=True)
class PassReport:
    """Name, wall-clock milliseconds and changed nodes of one pass."""

    name: str
    milliseconds: float
    changed: int


@dataclass
class Report:
    """Result of the passes on one graph.

    Attributes:
        reason: why nothing was rewritten; empty if something was.
        schedule: the schedule's name or spec text; ``schedule_origin`` says where it came from.
        row_source: how the visual rows are known.
        num_layers: decoder layers found in the graph.
        operators: one entry per matched operator, in order.
        misses: operators of the schedule that stay full.
        stops: row selections that could not move further towards the inputs.
    """

    reason: str = ""
    schedule: str = ""
    schedule_origin: str = ""
    row_source: str = ""
    num_layers: int = 0
    operators: tuple[OperatorReport, ...] = ()
    misses: tuple[Miss, ...] = ()
    stops: tuple[Stop, ...] = ()
    passes: tuple[PassReport, ...] = ()
    nodes_before: int = 0
    nodes_after: int = 0

    @property
    def rewritten(self) -> bool:
        """True if at least one operator is skipped."""
        return any(op.skipped for op in self.operators)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the skipped operators, such as ``"17.ffn"``."""
        return tuple(op.name for op in self.operators if op.skipped)

    @property
    def milliseconds(self) -> float:
        """Wall-clock time of all passes."""
        return sum(p.milliseconds for p in self.passes)

    def remaining(self) -> Counter[str]:
        """Operations on visual rows left in skipped operators, counted by name; empty when pushdown was complete."""
        return Counter(name for op in self.operators for name in op.remaining)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "rewritten": self.rewritten, "milliseconds": round(self.milliseconds, 3)}

    def layer_states(self) -> tuple[str, ...]:
        """The state of every layer: full, attend, transform or silent."""
        skipped = {(op.layer, op.kind) for op in self.operators if op.skipped}
        names = {
            (False, False): "full",
            (False, True): "attend",
            (True, False): "transform",
            (True, True): "silent",
        }
        return tuple(
            names[(layer, "attention") in skipped, (layer, "ffn") in skipped] for layer in range(self.num_layers)
        )

    def __str__(self) -> str:
        if not self.rewritten:
            return f"opskip: graph of {self.nodes_before} nodes left unchanged: {self.reason}"
        lines = [
            f"opskip: {len(self.skipped)} of {len(self.operators)} operators skipped in {self.num_layers} layers, "
            f"schedule {self.schedule} ({self.schedule_origin}), rows from {self.row_source}, "
            f"{self.nodes_before} -> {self.nodes_after} nodes in {self.milliseconds:.0f} ms",
        ]
        lines += [f"  layer {i:3d}  {state}" for i, state in enumerate(self.layer_states()) if state != "full"]
        lines += [f"  stays full: {m.layer}.{m.kind} at {m.node or '-'} {m.source}: {m.reason}" for m in self.misses]
        lines += [f"  computed in full: {s.node} ({s.operation}) {s.source}: {s.reason}" for s in self.stops]
        return "\n".join(lines)
