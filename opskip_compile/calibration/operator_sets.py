"""Sets of skipped operators: what a calibration chooses from, how a set is written down, and its schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from opskip_compile.schedule.left_out import Rows
from opskip_compile.schedule.schedule import OPERATORS, Rule, Schedule


class OperatorId(NamedTuple):
    """One branch of one decoder layer; ``kind`` is ``"attention"`` or ``"ffn"``. Sorted in the order of execution."""

    layer: int
    kind: str

    @property
    def name(self) -> str:
        """``"17.ffn"`` and the like, as in a `Report`."""
        return f"{self.layer}.{self.kind}"


Skipped = frozenset[OperatorId]
NOTHING: Skipped = frozenset()


def all_operators(num_layers: int) -> tuple[OperatorId, ...]:
    """All operators of a decoder, in the order of execution."""
    return tuple(OperatorId(layer, kind) for layer in range(num_layers) for kind in OPERATORS)


def skipped_by(schedule: Schedule, num_layers: int) -> Skipped:
    """The operators that a schedule skips."""
    states = schedule.resolve(num_layers)
    return frozenset(op for op in all_operators(num_layers) if getattr(states[op.layer], op.kind))


def as_schedule(skipped: Iterable[OperatorId], rows: Rows = "visual", **more: Any) -> Schedule:
    """The schedule that skips these operators; ``more`` are fields of `Schedule`."""
    rules = tuple(Rule((op.layer,), (op.kind,), rows) for op in sorted(skipped))
    return Schedule(rules=rules, **more)


def spec_text(skipped: Iterable[OperatorId]) -> str:
    """Spec text, such as ``silent:7 attend:0,3``: one text for one set."""
    return as_schedule(skipped).to_spec()


def first_difference(one: Skipped, other: Skipped, num_layers: int) -> int:
    """The first layer in which two sets differ; ``num_layers`` if they are equal."""
    return min((op.layer for op in one ^ other), default=num_layers)
