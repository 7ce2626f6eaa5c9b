"""What a schedule saves, in FLOPs: the exact integer count of one decoder prefill, per layer and operator.

One multiply-add is 2 FLOPs. With ``q`` query rows, ``k`` key rows and ``f`` FFN rows one layer costs

    attention = 4 q d Hq Dh  +  4 k d Hkv Dh  +  4 q k Hq Dh     (Q and output; K and V; scores and product)
    ffn       = 6 f d m                                          (4 f d m without a gate)

The attention is counted full: not causal-halved, no sliding window. Norms, rotary embedding, lm_head and the
vision tower are not counted. A skipped attention still projects K and V of every row: only ``q`` shrinks.

With a keep share, ``q`` and ``f`` have the critical rows besides. Each attention up to the last one that chooses some
then costs ``2 p k Hq Dh`` more for the scores of the ``p`` text rows that are asked, and ``2 p d Hq Dh`` for their
queries where it is skipped itself.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.output.numbers import prefix
from opskip_compile.schedule.geometry import Geometry, check_count
from opskip_compile.schedule.left_out import PROBES, LeftOut, Rows
from opskip_compile.schedule.rules import OPERATORS, LayerStates
from opskip_compile.schedule.schedule import Schedule

if TYPE_CHECKING:
    from rich.table import Table


class CountedPrompt(Protocol):
    """The rows of the call for which a graph was compiled: of all elements, and the visual ones of each."""

    @property
    def batch(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def visual(self) -> Sequence[int]: ...


class CountedOperator(Protocol):
    """One operator of a compiled graph, with the FLOPs of its matrix products."""

    @property
    def layer(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def flops_before(self) -> int | None: ...
    @property
    def flops_after(self) -> int | None: ...


class CountedGraph(Protocol):
    """What `count_flops` reads of a graph whose products were counted: of the `Report` of a compile."""

    @property
    def reason(self) -> str: ...
    @property
    def prompt(self) -> CountedPrompt | None: ...
    @property
    def operators(self) -> Sequence[CountedOperator]: ...
    @property
    def flops_before(self) -> int | None: ...
    @property
    def flops_after(self) -> int | None: ...


@dataclass(frozen=True)
class OperatorFlops:
    """FLOPs of one operator: `dense`, and with the schedule (`skipped`; equal where it stays full)."""

    layer: int
    operator: str
    dense: int
    skipped: int


@dataclass(frozen=True)
class FlopsReport:
    """FLOPs of one prefill, dense and with a schedule. `str()` is a small table.

    ``geometry`` is None where a graph was counted: for a batch, the rows are those of all its elements, and
    ``text_tokens`` are the rows that are not visual.
    """

    geometry: Geometry | None
    visual_tokens: int
    text_tokens: int
    text_before: int
    operators: tuple[OperatorFlops, ...]

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return 1 + max(item.layer for item in self.operators)

    @property
    def dense(self) -> int:
        """FLOPs of the dense prefill, all operators."""
        return sum(item.dense for item in self.operators)

    @property
    def skipped(self) -> int:
        """FLOPs of the prefill under the schedule, all operators."""
        return sum(item.skipped for item in self.operators)

    @property
    def cut(self) -> float:
        """Share of the dense FLOPs that the schedule saves, 0 to 1."""
        return 1 - self.skipped / self.dense

    @property
    def ideal_speedup(self) -> float:
        """Dense over skipped: what a prefill bound by FLOPs alone would gain."""
        return self.dense / self.skipped

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the totals as well."""
        totals = {"dense": self.dense, "skipped": self.skipped, "cut": self.cut}
        return {**asdict(self), **totals, "ideal_speedup": self.ideal_speedup}

    def table(self) -> Table:
        """Dense and skipped FLOPs by kind of operator, as a table of rich."""
        from rich.table import Table

        rows = f"{self.visual_tokens} visual + {self.text_tokens} text rows"
        table = Table(title=f"Prefill FLOPs, {self.num_layers} layers, {rows}")
        unit, letter = prefix(self.dense)
        for name in ("operator", "skipped in", f"dense {letter}", f"skipped {letter}", "cut"):
            table.add_column(name, justify="left" if name == "operator" else "right")
        fewer = Counter(item.operator for item in self.operators if item.skipped < item.dense)
        for name in (*OPERATORS, "total"):
            part = [item for item in self.operators if name in (item.operator, "total")]
            dense, skipped = sum(item.dense for item in part), sum(item.skipped for item in part)
            layers = "" if name == "total" else f"{fewer[name]} layers"
            cut = f"{1 - skipped / dense:.1%}"
            table.add_row(name, layers, f"{dense / unit:.3f}", f"{skipped / unit:.3f}", cut)
        table.caption = f"ideal speed-up {self.ideal_speedup:.2f}x"
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get().rstrip()


def count_flops(
    source: Any,
    *,
    visual_tokens: int | None = None,
    text_tokens: int | None = None,
    schedule: Any = None,
    text_before: int = 0,
) -> FlopsReport:
    """Count one prefill of ``visual_tokens + text_tokens`` rows, dense and with `schedule`.

    Args:
        source: a `Geometry`, a transformers config or a model that has one: counted by the formula. Or a `Report`
            of a compile: then the matrix products of its two graphs were counted, and no other argument is taken.
        visual_tokens, text_tokens: rows of the prompt.
        schedule: anything that `Schedule.of` takes; None is dense.
        text_before: of the text rows, those before the last visual row: rules with rows ``through_visual`` leave
            them out as well. With 0 (all text after the image) both row sets cost the same.

    Raises:
        OptionError: a bad count; ScheduleError: a bad schedule; OpSkipError: sizes that are not known.
    """
    if hasattr(source, "flops_before"):
        return _count_graph(source, visual_tokens, text_tokens, schedule)
    geometry = Geometry.from_config(source)
    check_count(visual_tokens, "visual_tokens", least=0)
    check_count(text_tokens, "text_tokens", least=0 if visual_tokens else 1)
    assert visual_tokens is not None and text_tokens is not None
    check_count(text_before, "text_before", least=0)
    if text_before > (text_tokens if visual_tokens else 0):
        raise OptionError(f"text_before: at most the text rows before a visual row, got {text_before}")
    n = visual_tokens + text_tokens
    sets: dict[Rows, int] = {"visual": visual_tokens, "through_visual": visual_tokens + text_before}

    def kept(left_out: LeftOut | None) -> int:
        return n if left_out is None else n - sets[left_out.rows] + left_out.critical(sets[left_out.rows])

    states = (Schedule() if schedule is None else Schedule.of(schedule)).resolve(geometry.num_layers)
    scored, asked = layers_scored(states) if visual_tokens else 0, min(text_tokens, PROBES)
    operators = []
    for i, layer in enumerate(states):
        attention = geometry.attention(kept(layer.attention), n)
        if i < scored:
            attention += geometry.scores(asked, n, queries=layer.attention is not None)
        operators.append(OperatorFlops(i, "attention", geometry.attention(n, n), attention))
        operators.append(OperatorFlops(i, "ffn", geometry.ffn(n), geometry.ffn(kept(layer.ffn))))
    return FlopsReport(geometry, visual_tokens, text_tokens, text_before, tuple(operators))


def layers_scored(states: Sequence[LayerStates]) -> int:
    """How many layers from the first on are asked for their attention, so that every keep share has its scores.

    An attention chooses its rows by the layers before it, an FFN by its own layer's attention as well.
    """
    last = [
        i + (kind == "ffn")
        for i, state in enumerate(states)
        for kind in OPERATORS
        if (left_out := getattr(state, kind)) is not None and left_out.chooses
    ]
    return max(last, default=0)


def _count_graph(report: CountedGraph, *others: object) -> FlopsReport:
    if any(other is not None for other in others):
        raise OptionError("visual_tokens, text_tokens, schedule: a report has its own")
    if report.prompt is None or report.flops_before is None or report.flops_after is None:
        raise OpSkipError(f"report: its sizes are not known ({report.reason or 'the inputs had no data'})")
    visual = sum(report.prompt.visual)
    text = report.prompt.batch * report.prompt.rows - visual
    operators = tuple(
        OperatorFlops(op.layer, op.kind, op.flops_before or 0, op.flops_after or 0) for op in report.operators
    )
    return FlopsReport(None, visual, text, 0, operators)
