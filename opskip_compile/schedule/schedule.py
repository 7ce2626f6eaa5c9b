"""What is skipped where: frozen, hashable values.

A `Schedule` names, for every layer and operator, which visual rows keep the residual. However it was written
(spec text, JSON file, `Rule` objects, preset), it is held in one normal form, so two schedules with the same
rules for the same model are equal, hash alike and have one `digest`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, cast

from opskip_compile.errors import ScheduleError
from opskip_compile.schedule import validation as tables
from opskip_compile.schedule.left_out import ROWS, LeftOut, Rows, check_share
from opskip_compile.schedule.published import Published, published
from opskip_compile.schedule.validation import show, within

State = Literal["full", "attend", "transform", "silent"]

OPERATORS = ("attention", "ffn")
SKIPS = {"silent": OPERATORS, "transform": ("attention",), "attend": ("ffn",)}  # by layer state
FORMAT, VERSION = "opskip-schedule", 2
_WITHOUT_KEEP = 1  # the version that knows no keep shares, and is written where there are none

_MAX_RULES = 1_000
_MODEL_NAMES = ("name", "architecture")
_MODEL_SIZES = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
_FRACTION = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?")


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


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """Rules, the model they were made for (`num_layers` is also in `model`), and where they came from.

    Equality, hash, `repr` and `digest` cover what it does (`rules`, `late`, `model`), not `name` and
    `provenance`. Every bad value, here or in a file, is a `ScheduleError` that names the field. With a known
    layer count, `late` and rules for all layers become rules that list their layers.
    """

    rules: tuple[Rule, ...] = ()
    late: Late | None = None
    num_layers: int | None = None
    model: Mapping[str, str | int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    _key: str = field(init=False)

    def __post_init__(self) -> None:
        model = tables.check_facts(self.model, "model", _MODEL_NAMES, _MODEL_SIZES)
        if model.setdefault("num_layers", cast(int, self.num_layers)) is None:
            del model["num_layers"]
        num_layers = cast("int | None", model.get("num_layers"))
        if num_layers is not None:
            tables.check_count(num_layers, "num_layers", most=tables.MAX_LAYER + 1)
        if self.num_layers not in (None, num_layers):
            raise ScheduleError(f"num_layers: {show(self.num_layers)}, but model.num_layers is {num_layers}")
        rules = tables.check_list(self.rules, "rules", most=_MAX_RULES)
        for i, rule in enumerate(rules):
            tables.check_type(rule, (Rule,), f"rules[{i}]")
        tables.check_type(self.late, (Late, type(None)), "late")
        tables.check_type(self.name, (str, type(None)), "name")
        values = {
            "rules": _normal_form(*_merge(rules, self.late, num_layers)),
            "late": self.late if num_layers is None and self.late and self.late.skips_something else None,
            "num_layers": num_layers,
            "model": MappingProxyType({k: model[k] for k in _MODEL_NAMES + _MODEL_SIZES if k in model}),
            "provenance": MappingProxyType(tables.plain_json(self.provenance, "provenance")),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        does = {key: value for key, value in self.to_dict().items() if key in ("model", "rules", "late")}
        object.__setattr__(self, "_key", json.dumps(does, sort_keys=True))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """Check `data` (the JSON layout that `to_dict` writes) and make a schedule of it."""
        known = ("format", "version", "name", "model", "rules", "late", "provenance")
        tables.check_keys(data, "", known, required=("format", "version", "rules"))
        tables.check_choice(data["format"], (FORMAT,), "format")
        version = data["version"]
        if type(version) is not int or version not in (_WITHOUT_KEEP, VERSION):
            raise ScheduleError(f"version: expected {_WITHOUT_KEEP} or {VERSION}, got {show(version)}")
        rules = []
        for i, item in enumerate(tables.check_list(data["rules"], "rules", most=_MAX_RULES)):
            _check_rule(item, f"rules[{i}]", ("layers", "skip"), version)
            with within(f"rules[{i}]"):
                layers = item["layers"]
                layers = tables.parse_layers(layers) if isinstance(layers, str) else layers
                rules.append(Rule(layers, item["skip"], item.get("rows", "visual"), item.get("keep", 0.0)))
        late = None
        if "late" in data:
            item = data["late"]
            _check_rule(item, "late", ("fraction",), version)
            with within("late"):
                late = Late(item["fraction"], item.get("rows", "visual"), item.get("keep", 0.0))
        more = {key: data[key] for key in ("model", "provenance", "name") if key in data}
        return cls(rules=tuple(rules), late=late, **more)

    @classmethod
    def from_spec(cls, text: str) -> Schedule:
        """Read ``none``, a preset name, or items: ``silent@through_visual:24-35 transform:2,4 attend@keep=0.25:all``.

        An item is a state, or ``late``; after ``@`` the rows that are left out, the share of them that is kept, or
        both with a comma between them; and after ``:`` the layers, or the fraction of the last ones.
        """
        items = text.split() if isinstance(text, str) else []
        if not items:
            raise ScheduleError(f"spec: expected text such as 'none' or 'silent:24-35', got {show(text)}")
        if items == ["none"]:
            return cls()
        if len(items) == 1 and ":" not in text:
            return cls.preset(items[0])
        rules: list[Rule] = []
        late: Late | None = None
        for item in tables.check_list(items, "spec", most=_MAX_RULES):
            head, _, body = item.partition(":")
            state, at, suffix = head.partition("@")
            with within(f"spec: {show(item)}", ": "):
                tables.check_choice(state, (*SKIPS, "late"), "state")
                left_out = LeftOut.parse(suffix)
                if at and not suffix:
                    raise ScheduleError("rows: nothing after '@'")
                if state in SKIPS:
                    rules.append(Rule(tables.parse_layers(body), SKIPS[state], left_out.rows, left_out.keep))
                elif late is not None:
                    raise ScheduleError("late: named twice")
                else:
                    fraction = cast(float, float(body) if _FRACTION.fullmatch(body) else body)
                    late = Late(fraction, left_out.rows, left_out.keep)
        with within("spec", ": "):
            return cls(rules=tuple(rules), late=late)

    @classmethod
    def preset(cls, name: str) -> Schedule:
        """The published schedule `name`, for example ``qwen3-vl-8b/20``."""
        known = published()
        if not isinstance(name, str) or name not in known:
            near = difflib.get_close_matches(show(name), known, n=1, cutoff=0.0)[0]
            raise ScheduleError(
                f"preset: there is no {show(name)}, the nearest is {near!r} (a file name ends in .json)"
            )
        return _preset(known[name])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schedule:
        """Read a schedule file. Nothing in it is executed."""
        if not isinstance(path, (str, os.PathLike)):
            raise ScheduleError(f"path: expected a path, got {show(path)}")
        name = os.fsdecode(path)
        with within(repr(name), ": "):
            return cls.from_dict(tables.read_json(name))

    @classmethod
    def of(cls, obj: Schedule | str | os.PathLike[str] | Mapping[str, Any]) -> Schedule:
        """Coerce: a path or text ending in ``.json`` is a file, a mapping its content, other text a spec."""
        if isinstance(obj, Schedule):
            return obj
        if isinstance(obj, os.PathLike) or (isinstance(obj, str) and obj.lower().endswith(".json")):
            return cls.load(obj)
        with within("schedule", ": "):
            return cls.from_dict(obj) if isinstance(obj, Mapping) else cls.from_spec(obj)

    def to_dict(self) -> dict[str, Any]:
        """The JSON layout, in normal form: at most one rule for each state, row set and share."""
        keeps = any(rule.keep for rule in self.rules) or (self.late is not None and self.late.keep > 0)
        out: dict[str, Any] = {"format": FORMAT, "version": VERSION if keeps else _WITHOUT_KEEP}
        if self.name is not None:
            out["name"] = self.name
        out["model"] = dict(self.model)
        out["rules"] = [
            {"layers": tables.format_layers(r.layers), "skip": list(r.skip), **_rows_of(r)} for r in self.rules
        ]
        if self.late is not None:
            out["late"] = {"fraction": self.late.fraction, **_rows_of(self.late)}
        out["provenance"] = tables.plain_json(self.provenance, "provenance")
        return out

    def to_spec(self) -> str:
        """Spec text with the same rules; the model, name and provenance are not part of it."""
        states = {skip: state for state, skip in SKIPS.items()}
        items = [(states[rule.skip], rule.left_out, tables.format_layers(rule.layers)) for rule in self.rules]
        if self.late is not None:
            items.append(("late", self.late.left_out, repr(self.late.fraction)))
        return " ".join(f"{state}{left_out.suffix}:{body}" for state, left_out, body in items) or "none"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file as a whole or not at all; the same schedule always gives the same bytes.

        Raises:
            OpSkipError: the file can't be written.
        """
        tables.write_json(self.to_dict(), path)

    def resolve(self, num_layers: int) -> tuple[LayerStates, ...]:
        """The states of each layer of a model of `num_layers`; refused if made for another count."""
        tables.check_count(num_layers, "num_layers", most=tables.MAX_LAYER + 1)
        if self.num_layers not in (None, num_layers):
            raise ScheduleError(
                f"num_layers: the schedule was made for {self.num_layers} layers, the model has {num_layers}"
            )
        _, states = _merge(self.rules, self.late, num_layers)
        return tuple(states.get(layer, LayerStates()) for layer in range(num_layers))

    @property
    def is_empty(self) -> bool:
        return not self.rules and self.late is None

    @property
    def digest(self) -> str:
        """Short SHA-256 of what the schedule does: the same in every process."""
        return hashlib.sha256(self._key.encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Schedule) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __reduce__(self) -> tuple[Any, ...]:
        return Schedule.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        return f"Schedule({self.to_spec()!r}, num_layers={self.num_layers}, digest={self.digest!r})"


def _check_rule(item: object, field: str, required: tuple[str, ...], version: int) -> None:
    """A table of a file, with the keys of its version."""
    if version < VERSION and isinstance(item, Mapping) and "keep" in item:
        raise ScheduleError(f"{field}.keep: needs version {VERSION} of the format, the file says version {version}")
    more = ("rows",) if version < VERSION else ("rows", "keep")
    tables.check_keys(item, field, (*required, *more), required=required)


@cache
def _preset(source: Published) -> Schedule:
    return Schedule(
        rules=Schedule.from_spec(source.spec).rules,
        model=source.facts(),
        provenance={"source": source.source},
        name=source.name,
    )


def _merge(
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


def _rows_of(rule: Rule | Late) -> dict[str, Any]:
    return {"rows": rule.rows, "keep": rule.keep} if rule.keep else {"rows": rule.rows}


def _normal_form(every: LayerStates, states: Mapping[int, LayerStates]) -> tuple[Rule, ...]:
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
