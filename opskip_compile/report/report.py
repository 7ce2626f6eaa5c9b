"""What one compile did: every operator with its state, everything that stayed full with its reason, and the cost.

`Report` is plain, frozen data, made of what the passes return, the same whether the graph was lowered or only
explained. The graphs behind it are read again only if somebody asks for `Report.diff`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from opskip_compile.errors import OpSkipError
from opskip_compile.passes.analysis.operators import operator_name
from opskip_compile.passes.graph.sizes import Prompt
from opskip_compile.passes.levels import taken
from opskip_compile.passes.refusal import Refusal
from opskip_compile.passes.state import PassReport
from opskip_compile.report.diff import GraphDiff

_STATES = {(False, False): "full", (False, True): "attend", (True, False): "transform", (True, True): "silent"}


@dataclass(frozen=True)
class OperatorReport:
    """One operator of the decoder.

    Attributes:
        layer, kind, number: which one; the number is 1 unless a layer has several of the kind.
        rows: the row set that it leaves out, ``"visual"`` or ``"through_visual"``; None where it stays full.
        entry, exit: names of the nodes between which it stands, and their source lines.
        rows_before, rows_after: rows of one batch element that it updates; None where the prompt is not known.
        flops_before, flops_after: of its matrix products in this call, for the whole batch; None if not known.
        remaining: operations of the operator that still run on every row although it is skipped, by name. Keys and
            values and what only they need do not count: the KV cache keeps every row.
    """

    layer: int
    kind: str
    rows: str | None
    entry: str
    exit: str
    entry_source: str
    exit_source: str
    rows_before: int | None = None
    rows_after: int | None = None
    flops_before: int | None = None
    flops_after: int | None = None
    remaining: tuple[str, ...] = ()
    number: int = 1

    @property
    def name(self) -> str:
        """``"17.ffn"`` and the like; ``"17.ffn/2"`` for a second one."""
        return operator_name(self.layer, self.kind, self.number)

    @property
    def skipped(self) -> bool:
        """False if it stays full."""
        return self.rows is not None

    @property
    def state(self) -> str:
        """``"full"`` or ``"skip"``."""
        return "skip" if self.skipped else "full"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"name": self.name, "state": self.state, "skipped": self.skipped, **asdict(self)}


@dataclass(frozen=True)
class Report:
    """Result of the passes on one graph.

    Attributes:
        refusal: why nothing was rewritten; None if something was.
        recompile: why Dynamo compiled this function again: the guard that failed; empty for the first time.
        schedule: the schedule's name or spec text; ``schedule_origin`` says where it came from.
        row_source: how the visual rows are known.
        prompt: the rows of the call for which the graph was compiled; None where they could not be known.
        num_layers: decoder layers found in the graph.
        operators: one entry per operator found, in order; those of the misses among them.
        misses: operators of the schedule that stay full, and what is nearest to a match.
        stops: row selections that could not move further towards the inputs.
        passes: every pass; the last entry is the making of this report.
        number: of the graph, counted in this process; 0 if it did not come from the backend.
        digest: of a schedule whose prompts take one of several levels; rows and FLOPs are then those of the deepest.
    """

    refusal: Refusal | None = None
    recompile: str = ""
    schedule: str = ""
    schedule_origin: str = ""
    row_source: str = ""
    prompt: Prompt | None = None
    num_layers: int = 0
    operators: tuple[OperatorReport, ...] = ()
    misses: tuple[Refusal, ...] = ()
    stops: tuple[Refusal, ...] = ()
    passes: tuple[PassReport, ...] = ()
    nodes_before: int = 0
    nodes_after: int = 0
    number: int = field(default=0, compare=False)
    digest: str = ""
    make_diff: Callable[[Report], GraphDiff] | None = field(default=None, repr=False, compare=False)

    @property
    def reason(self) -> str:
        """Why nothing was rewritten; empty if something was."""
        return "" if self.refusal is None else self.refusal.reason

    @property
    def rewritten(self) -> bool:
        """True if at least one operator is skipped."""
        return any(op.skipped for op in self.operators)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the skipped operators, such as ``"17.ffn"``."""
        return tuple(op.name for op in self.operators if op.skipped)

    @property
    def levels(self) -> tuple[int, ...]:
        """The level that each prompt of the newest batch under this schedule took; empty without levels."""
        return taken(self.digest) if self.digest else ()

    @property
    def milliseconds(self) -> float:
        """Wall-clock time of all passes."""
        return sum(p.milliseconds for p in self.passes)

    @property
    def flops_before(self) -> int | None:
        """FLOPs of all operators in the captured graph, for this call; None if not known."""
        return _total([op.flops_before for op in self.operators])

    @property
    def flops_after(self) -> int | None:
        """FLOPs of all operators in the rewritten graph, for this call; None if not known."""
        return _total([op.flops_after for op in self.operators])

    def remaining(self) -> Counter[str]:
        """Operations on visual rows left in skipped operators, counted by name; empty when pushdown was complete."""
        return Counter(name for op in self.operators for name in op.remaining)

    def layer_states(self) -> tuple[str, ...]:
        """The state of every layer: full, attend, transform or silent."""
        skipped = {(op.layer, op.kind) for op in self.operators if op.skipped}
        return tuple(
            _STATES[(layer, "attention") in skipped, (layer, "ffn") in skipped] for layer in range(self.num_layers)
        )

    def _kept_in(self, layer: int) -> str:
        """The row sets of the skipped operators of a layer, where they are not just the visual rows."""
        sets = {op.kind: op.rows for op in self.operators if op.layer == layer and op.rows not in (None, "visual")}
        if not sets:
            return ""
        same = len(sets) == 2 and len(set(sets.values())) == 1
        named = [str(next(iter(sets.values())))] if same else [f"{kind} {rows}" for kind, rows in sets.items()]
        return f"  ({'; '.join(named)})"

    def diff(self) -> GraphDiff:
        """The captured graph against the rewritten one.

        Raises:
            OpSkipError: the graphs are not kept any more; only the newest compiles keep them.
        """
        if self.make_diff is None:
            raise OpSkipError(
                "diff: the graphs of this report are not kept any more; use explain(), or options={'dump': folder}"
            )
        return self.make_diff(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. Only ``timing`` differs from run to run."""
        plain = {
            name: getattr(self, name)
            for name in ("reason", "recompile", "schedule", "schedule_origin", "row_source", "num_layers")
        }
        return {
            "rewritten": self.rewritten,
            **plain,
            "prompt": None if self.prompt is None else asdict(self.prompt),
            "layer_states": list(self.layer_states()),
            "operators": [op.to_dict() for op in self.operators],
            "misses": [_miss(miss) for miss in self.misses],
            "stops": [stop.to_dict() for stop in self.stops],
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "flops_before": self.flops_before,
            "flops_after": self.flops_after,
            "passes": [{"name": done.name, "changed": done.changed} for done in self.passes],
            "timing": {done.name: round(done.milliseconds, 3) for done in self.passes},
        }

    def __str__(self) -> str:
        if not self.rewritten:
            lines = [f"opskip: graph of {self.nodes_before} nodes left unchanged: {self.reason}"]
        else:
            lines = [
                f"opskip: {len(self.skipped)} of {len(self.operators)} operators skipped in {self.num_layers} layers, "
                f"schedule {self.schedule} ({self.schedule_origin}), rows from {self.row_source}, "
                f"{self.nodes_before} -> {self.nodes_after} nodes",
            ]
            before, after = self.flops_before, self.flops_after
            if self.prompt is not None and before and after is not None:
                rows = f"{max(self.prompt.visual, default=0)} visual of {self.prompt.rows} rows{_of_each(self.prompt)}"
                batch = f", batch of {self.prompt.batch}" if self.prompt.batch > 1 else ""
                lines.append(
                    f"  FLOPs of the operators {before:,} -> {after:,} ({1 - after / before:.1%} fewer; {rows}{batch})"
                )
        if self.rewritten and self.digest:
            last = f"; the newest batch took {', '.join(map(str, self.levels))}" if self.levels else ""
            lines.append(f"  each prompt takes a level of its own, the count is that of the deepest{last}")
        lines += [f"  compiled again: {self.recompile}"] if self.recompile else []
        lines += [
            f"  layer {i:3d}  {state}{self._kept_in(i)}"
            for i, state in enumerate(self.layer_states())
            if state != "full"
        ]
        for m in self.misses:
            lines.append(f"  stays full: {m.operator} at {m.node or '-'} {m.source}: {m.reason}")
            lines += [f"    nearest match: {m.nearest}"] if m.nearest else []
        for s in self.stops:
            place = f"in {s.operator} " if s.operator else ""
            lines.append(f"  computed in full: {s.node} ({s.operation}) {place}{s.source}: {s.reason}")
        return "\n".join(lines)


def _of_each(prompt: Prompt) -> str:
    """The rows of each modality in the element that has the most, where there are others than those of images."""
    if not {*prompt.modalities} - {"image"}:
        return ""
    most = prompt.visual.index(max(prompt.visual))
    return ": " + ", ".join(f"{rows[most]} {name}" for name, rows in prompt.modalities.items() if rows[most])


def _miss(miss: Refusal) -> dict[str, Any]:
    return {"layer": miss.layer, "kind": miss.kind, **miss.to_dict()}


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
