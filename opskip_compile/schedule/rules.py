"""What a schedule is made of: rules, what they say of each layer, and the one form in which they are held."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from opskip_compile.errors import ScheduleError
from opskip_compile.schedule import validation as tables
from opskip_compile.schedule.left_out import ROWS, LeftOut, Rows, check_share
from opskip_compile.schedule.validation import show

State = Literal["full", "attend", "transform", "silent"]

OPERATORS = ("attention", "ffn")
SKIPS = {"silent": OPERATORS, "transform": ("attention",), "attend": ("ffn",)}  # by layer state


@dataclass(frozen=True)
class Rule:
    """Skip the operators `skip` of `layers` (zero-based, or ``"all"``) for the row set `rows`.

    With a share `keep` they still update ``ceil(keep * rows)`` rows of the set, those with the highest score; see
    `opskip_compile.passes.scores`. A rule that keeps everything (1) leaves the operators full.
    """

    layers: tables.Layers
    skip: tuple[str, ...]
    rows: Rows = "visual"
    keep: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tables.check_layers(self.layers))
        names = tables.check_list(self.skip, "skip", most=len(OPERATORS))
        for i, name in enumerate(names):
            tables.check_choice(name, OPERATORS, f"skip[{i}]")
        if not names or len(set(names)) < len(names):
            raise ScheduleError(f"skip: expected one or both of {', '.join(OPERATORS)}, got {names}")
        object.__setattr__(self, "skip", tuple(name for name in OPERATORS if name in names))
        tables.check_choice(self.rows, ROWS, "rows")
        object.__setattr__(self, "keep", check_share(self.keep))

    @property
    def left_out(self) -> LeftOut:
        """The rows that the operators leave out."""
        return LeftOut(self.rows, self.keep)


@dataclass(frozen=True)
class Late:
    """The last ``floor(fraction * num_layers + 0.5)`` layers are silent: a rule for a model not known yet."""

    fraction: float
    rows: Rows = "visual"
    keep: float = 0.0

    def __post_init__(self) -> None:
        x = self.fraction
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 <= x <= 1:
            raise ScheduleError(f"fraction: expected a number from 0 to 1, got {show(x)}")
        object.__setattr__(self, "fraction", float(x) + 0.0)  # -0.0 becomes 0.0
        tables.check_choice(self.rows, ROWS, "rows")
        object.__setattr__(self, "keep", check_share(self.keep))

    @property
    def left_out(self) -> LeftOut:
        """The rows that the operators leave out."""
        return LeftOut(self.rows, self.keep)

    @property
    def skips_something(self) -> bool:
        """False for no layers, and where everything is kept."""
        return self.fraction > 0 and self.keep < 1

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(num_layers - math.floor(self.fraction * num_layers + 0.5), num_layers))


@dataclass(frozen=True)
class LayerStates:
    """The rows that each operator of one layer leaves out; None is a full operator."""

    attention: LeftOut | None = None
    ffn: LeftOut | None = None

    @property
    def state(self) -> State:
        if self.attention:
            return "silent" if self.ffn else "transform"
        return "attend" if self.ffn else "full"


def by_level(levels: Sequence[Sequence[LayerStates]]) -> tuple[LayerStates, ...]:
    """The layer states of several levels as one, with the share of each level where it is not the same in all.

    Raises:
        ScheduleError: an operator leaves out rows of one set at one level and of another set at another.
    """
    merged = []
    for layer, states in enumerate(zip(*levels, strict=True)):
        found: dict[str, LeftOut] = {}
        for operator in OPERATORS:
            each: list[LeftOut | None] = [getattr(state, operator) for state in states]
            rows = {left_out.rows for left_out in each if left_out is not None}
            if len(rows) > 1:
                raise ScheduleError(f"levels: layer {layer} {operator} leaves out visual and through_visual rows")
            shares = tuple(1.0 if left_out is None else left_out.keep for left_out in each)
            if rows:
                one = len(set(shares)) == 1
                found[operator] = LeftOut(rows.pop(), shares[0], () if one else shares)
        merged.append(LayerStates(**found))
    return tuple(merged)


def merge(
    rules: Iterable[Rule], late: Late | None, num_layers: int | None
) -> tuple[LayerStates, dict[int, LayerStates]]:
    """What all rules together say of every layer, and what they say besides of each layer that they name.

    With a known layer count nothing is left that is said of every layer.
    """
    parts = [(f"rules[{i}]", rule) for i, rule in enumerate(rules)]
    if late is not None and num_layers is not None and late.layers(num_layers):
        parts.append(("late", Rule(late.layers(num_layers), OPERATORS, late.rows, late.keep)))
    every: dict[str, LeftOut] = {}
    merged: dict[int, dict[str, LeftOut]] = {}
    for where, rule in sorted(parts, key=lambda part: part[1].layers != tables.ALL):  # those of every layer first
        of_every = rule.layers == tables.ALL and num_layers is None
        layers = range(num_layers or 0) if isinstance(rule.layers, str) else rule.layers
        if num_layers is not None and layers[-1] >= num_layers:
            raise ScheduleError(f"{where}.layers: layer {layers[-1]} is not in a model of {num_layers} layers")
        named = [("every layer", every)] if of_every else [(f"layer {i}", merged.setdefault(i, {})) for i in layers]
        for name, known in named:
            for operator in rule.skip:
                rows = every.get(operator) or known.setdefault(operator, rule.left_out)
                if rows != rule.left_out:
                    field = "rows" if rows.rows != rule.rows else "keep"
                    says = f"{name} {operator} is {rule.left_out}, another rule says {rows}"
                    raise ScheduleError(f"{where}.{field}: {says}")
    return _states(every), {layer: _states(known) for layer, known in sorted(merged.items())}


def _states(known: Mapping[str, LeftOut]) -> LayerStates:
    """What rules say of one layer; an operator that keeps everything is full."""
    return LayerStates(**{operator: left_out for operator, left_out in known.items() if left_out.keep < 1})


def rows_of(rule: Rule | Late) -> dict[str, Any]:
    return {"rows": rule.rows, "keep": rule.keep} if rule.keep else {"rows": rule.rows}


def normal_form(every: LayerStates, states: Mapping[int, LayerStates]) -> tuple[Rule, ...]:
    """One rule for each pair of operators and left-out rows, silent layers first, those of every layer before."""
    groups: dict[tuple[tuple[str, ...], LeftOut], list[int]] = {}
    for layer, state in states.items():
        for left_out in _left_out(state):
            groups.setdefault((_skipped(state, left_out), left_out), []).append(layer)
    known = sorted({left_out for state in (every, *states.values()) for left_out in _left_out(state)}, key=_order)
    order = [(skip, left_out) for skip in SKIPS.values() for left_out in known]
    of_every = [_rule(tables.ALL, *key) for key in order if _skipped(every, key[1]) == key[0]]
    return (*of_every, *(_rule(tuple(groups[key]), *key) for key in order if key in groups))


def _rule(layers: tables.Layers, skip: tuple[str, ...], left_out: LeftOut) -> Rule:
    return Rule(layers, skip, left_out.rows, left_out.keep)


def _order(left_out: LeftOut) -> tuple[int, float]:
    return ROWS.index(left_out.rows), left_out.keep


def _left_out(state: LayerStates) -> set[LeftOut]:
    return {left_out for left_out in (state.attention, state.ffn) if left_out is not None}


def _skipped(state: LayerStates, left_out: LeftOut) -> tuple[str, ...]:
    return tuple(name for name in OPERATORS if getattr(state, name) == left_out)
