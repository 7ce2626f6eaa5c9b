"""What a schedule saves, in FLOPs: the exact integer count of one decoder prefill, per layer and operator.

One multiply-add is 2 FLOPs. With ``q`` query rows, ``k`` key rows and ``f`` FFN rows one layer costs

    attention = 4 q d Hq Dh  +  4 k d Hkv Dh  +  4 q k Hq Dh     (Q and output; K and V; scores and product)
    ffn       = 6 f d m                                          (4 f d m without a gate)

The attention is counted full: not causal-halved, no sliding window. Norms, rotary embedding, lm_head and the
vision tower are not counted. A skipped attention still projects K and V of every row: only ``q`` shrinks.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.report.text import prefix
from opskip_compile.schedule.schedule import OPERATORS, Rows, Schedule

if TYPE_CHECKING:
    from rich.table import Table

    from opskip_compile.report.report import Report

_FFN_WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PLAIN_FFN = frozenset({"bloom", "falcon", "gpt2", "gpt_neox", "opt", "persimmon", "phi", "starcoder2"})


@dataclass(frozen=True)
class Geometry:
    """The sizes of a decoder that its FLOPs depend on. `gated`: the FFN has three projections, not two."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    gated: bool = True

    def __post_init__(self) -> None:
        for item in fields(self)[:-1]:
            _check_count(getattr(self, item.name), f"geometry.{item.name}", least=1)

    @classmethod
    def from_config(cls, source: Any) -> Geometry:
        """Read a `Geometry`, a transformers config (multimodal or not) or a model that has one.

        Raises `OpSkipError` for a size that the config does not give, and for a mixture of experts, which the
        formula does not describe.
        """
        if isinstance(source, cls):
            return source
        config = getattr(source, "config", source)
        if hasattr(config, "get_text_config"):
            try:
                config = config.get_text_config(decoder=True)
            except ValueError as error:
                raise OpSkipError(f"config: no single text decoder: {error}") from error
        if any((getattr(config, name, None) or 0) != 0 for name in _EXPERTS):
            raise OpSkipError("config: a mixture of experts is not counted; pass a Geometry of its active sizes")
        kind = getattr(config, "model_type", "")
        hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
        plain_width = 4 * hidden if hidden and kind in _PLAIN_FFN else None
        sizes = {
            "num_layers": _size(config, "num_hidden_layers"),
            "hidden_size": hidden,
            "intermediate_size": _size(config, *_FFN_WIDTHS) or plain_width,
            "num_heads": heads,
            "num_kv_heads": _size(config, "num_key_value_heads") or heads,
            "head_dim": _size(config, "head_dim") or (hidden // heads if hidden and heads else None),
        }
        missing = [name for name, value in sizes.items() if value is None]
        if missing:
            raise OpSkipError(f"config: {type(config).__name__} does not give {', '.join(missing)}")
        found = {name: value for name, value in sizes.items() if value is not None}
        return cls(**found, gated=kind not in _PLAIN_FFN)

    def attention(self, query_rows: int, key_rows: int) -> int:
        heads, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        projections = 4 * self.hidden_size * (query_rows * heads + key_rows * kv)
        return projections + 4 * query_rows * key_rows * heads

    def ffn(self, rows: int) -> int:
        return (6 if self.gated else 4) * rows * self.hidden_size * self.intermediate_size


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
        return 1 + max(item.layer for item in self.operators)

    @property
    def dense(self) -> int:
        return sum(item.dense for item in self.operators)

    @property
    def skipped(self) -> int:
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
        totals = {"dense": self.dense, "skipped": self.skipped, "cut": self.cut}
        return {**asdict(self), **totals, "ideal_speedup": self.ideal_speedup}

    def table(self) -> Table:
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
    if hasattr(source, "make_diff"):
        return _count_graph(source, visual_tokens, text_tokens, schedule)
    geometry = Geometry.from_config(source)
    _check_count(visual_tokens, "visual_tokens", least=0)
    _check_count(text_tokens, "text_tokens", least=0 if visual_tokens else 1)
    assert visual_tokens is not None and text_tokens is not None
    _check_count(text_before, "text_before", least=0)
    if text_before > (text_tokens if visual_tokens else 0):
        raise OptionError(f"text_before: at most the text rows before a visual row, got {text_before}")
    n = visual_tokens + text_tokens
    kept: dict[Rows | None, int] = {
        None: n,
        "visual": text_tokens,
        "through_visual": text_tokens - text_before,
    }
    states = (Schedule() if schedule is None else Schedule.of(schedule)).resolve(geometry.num_layers)
    operators = []
    for i, layer in enumerate(states):
        attention = geometry.attention(kept[layer.attention], n)
        operators.append(OperatorFlops(i, "attention", geometry.attention(n, n), attention))
        operators.append(OperatorFlops(i, "ffn", geometry.ffn(n), geometry.ffn(kept[layer.ffn])))
    return FlopsReport(geometry, visual_tokens, text_tokens, text_before, tuple(operators))


def _count_graph(report: Report, *others: object) -> FlopsReport:
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


def _check_count(value: object, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name}: expected an integer of at least {least}, got {value!r}")


def _size(config: Any, *names: str) -> int | None:
    """The first of these attributes that is set."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except Exception as error:  # transformers' own, where the layers differ in it
            raise OpSkipError(f"config: {name} is not the same in all layers") from error
        if value is not None:
            _check_count(value, f"config.{name}", least=1)
            return int(value)
    return None
