"""Sets of skipped operators: what a calibration chooses from, how a set is written down, and its schedule.

A set is made of steps down from full: 3.ffn with half of its visual rows kept, then with a quarter of them, then with
none. It holds a step only with those above it, so that sets can be joined, taken from one another and compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from opskip_compile.schedule.left_out import LeftOut, Rows
from opskip_compile.schedule.rules import OPERATORS, Rule
from opskip_compile.schedule.schedule import Schedule


class OperatorId(NamedTuple):
    """One branch of one decoder layer; ``kind`` is ``"attention"`` or ``"ffn"``. Sorted in the order of execution."""

    layer: int
    kind: str

    @property
    def name(self) -> str:
        """``"17.ffn"`` and the like, as in a `Report`."""
        return f"{self.layer}.{self.kind}"


class Step(NamedTuple):
    """An operator updates no more than the share ``keep`` of its visual rows, its critical ones: 0 is skipped."""

    layer: int
    kind: str
    keep: float = 0.0

    @property
    def op(self) -> OperatorId:
        """The operator."""
        return OperatorId(self.layer, self.kind)


Skipped = frozenset[Step]
NOTHING: Skipped = frozenset()


def all_operators(num_layers: int) -> tuple[OperatorId, ...]:
    """All operators of a decoder, in the order of execution."""
    return tuple(OperatorId(layer, kind) for layer in range(num_layers) for kind in OPERATORS)


def skipping(ops: Iterable[tuple[int, str]], shares: Sequence[float] = (), keep: float = 0.0) -> Skipped:
    """The set in which each of some operators keeps the share ``keep``, by steps of ``shares``."""
    return frozenset(Step(*op, share) for op in ops for share in {*shares, keep} if share >= keep)


def kept_shares(skipped: Skipped) -> dict[OperatorId, float]:
    """The share that each operator of a set keeps, which its last step says, in the order of execution."""
    return dict(sorted({step.op: step.keep for step in sorted(skipped, reverse=True)}.items()))


def as_schedule(skipped: Skipped, rows: Rows = "visual", **more: Any) -> Schedule:
    """The schedule that skips these operators; ``more`` are fields of `Schedule`."""
    rules = tuple(Rule((op.layer,), (op.kind,), rows, keep) for op, keep in kept_shares(skipped).items())
    return Schedule(rules=rules, **more)


def left_out(skipped: Skipped, rows: Rows) -> Mapping[OperatorId, LeftOut]:
    """The rows that each operator of a set leaves out."""
    return {op: LeftOut(rows, keep) for op, keep in kept_shares(skipped).items()}


def spec_text(skipped: Skipped) -> str:
    """Spec text, such as ``silent:7 attend@keep=0.25:0,3``: one text for all sets that do the same."""
    return as_schedule(skipped).to_spec()


def first_difference(one: Skipped, other: Skipped, num_layers: int) -> int:
    """The first layer in which two sets differ; ``num_layers`` if they are equal."""
    return min((step.layer for step in one ^ other), default=num_layers)
