"""What a report says of the operators: rows and FLOPs in the captured and in the rewritten graph, and their places.

Everything is read off the two graphs; nothing here takes part in the rewrite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from opskip_compile.passes.analysis.flops import count_by_operator
from opskip_compile.passes.analysis.locate import RowSource
from opskip_compile.passes.analysis.match import Match, Operator
from opskip_compile.passes.analysis.plan import Plan
from opskip_compile.passes.analysis.prompt import read_prompt
from opskip_compile.passes.graph.origin import captured_place
from opskip_compile.passes.graph.sizes import Prompt, Sizes
from opskip_compile.report.record import source_line
from opskip_compile.report.report import OperatorReport


@dataclass(frozen=True)
class Facts:
    """Of one captured graph, read before it is rewritten.

    Attributes:
        match: the operators.
        owners: name of a captured node -> name of the operator that it belongs to.
        prompt: rows of this call, if known.
        sizes: shapes of both graphs' nodes.
        flops: of every operator as captured, if known.
    """

    match: Match
    owners: Mapping[str, str]
    prompt: Prompt | None
    sizes: Sizes
    flops: Mapping[str, int] | None

    @classmethod
    def of(cls, graph: fx.Graph, source: RowSource, match: Match, inputs: Sequence[Any] | None) -> Facts:
        """Read a copy of the captured graph; without ``inputs`` the prompt stays open."""
        prompt = read_prompt(graph, source, inputs) if inputs is not None and match.operators else None
        owners = operator_of_node(match)
        sizes = Sizes.of(graph, prompt)
        return cls(match, owners, prompt, sizes, count_by_operator(graph, owners, sizes))

    def operators(
        self,
        plan: Plan | None = None,
        rewritten: fx.Graph | None = None,
        remaining: Callable[[Operator], tuple[str, ...]] = lambda op: (),
    ) -> tuple[OperatorReport, ...]:
        """One entry per operator; without a plan all of them are full."""
        rows = {skip.operator.name: skip.rows for skip in plan.skips} if plan is not None else {}
        before = self.flops
        after = before if rewritten is None else count_by_operator(rewritten, self.owners, self.sizes)
        full = None if self.prompt is None else self.prompt.rows
        by_name: dict[str, list[Operator]] = {}
        for part in _all(self.match):
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
                rows_after=self.prompt.kept(rows[op.name]) if self.prompt is not None and op.name in rows else full,
                flops_before=None if before is None else before[op.name],
                flops_after=None if after is None else after[op.name],
                remaining=tuple(name for part in parts for name in remaining(part)) if op.name in rows else (),
            )
            for op, *parts in by_name.values()
        )


def operator_of_node(match: Match) -> dict[str, str]:
    """Name of a node -> its operator. What parallel operators share belongs to the first; an exit to its last."""
    owners: dict[str, str] = {}
    for op in _all(match):
        for node in op.region:
            owners.setdefault(captured_place(node), op.name)
    owners.update((captured_place(op.exit), op.name) for op in _all(match))
    return owners


def _all(match: Match) -> list[Operator]:
    """The matched operators and, beside them, those that could not be matched, in the order of the layers."""
    return sorted(match.operators + match.unmatched, key=lambda op: op.layer) if match.operators else []
