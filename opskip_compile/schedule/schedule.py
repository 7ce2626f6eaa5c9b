"""What is skipped where: frozen, hashable values.

A `Schedule` names, for every layer and operator, which visual rows keep the residual. However it was written
(spec text, JSON file, `Rule` objects, preset), it is held in one normal form, so two schedules with the same
rules for the same model are equal, hash alike and have one `digest`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any, cast

from opskip_compile.errors import ScheduleError
from opskip_compile.schedule import validation as tables
from opskip_compile.schedule.chooser import MAX_LEVELS, Chooser
from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.modalities import VISUAL, check_modalities
from opskip_compile.schedule.published import Published, published
from opskip_compile.schedule.rules import (
    SKIPS,
    Late,
    LayerStates,
    Rule,
    by_level,
    merge,
    normal_form,
    rows_of,
)
from opskip_compile.schedule.validation import show, within

FORMAT, VERSION = "opskip-schedule", 2
_WITHOUT_KEEP = 1  # the version that knows no keep shares and no modalities, and is written where there are none

_MAX_RULES = 1_000
_WHAT_IT_DOES = ("model", "modalities", "rules", "late", "levels", "chooser")
_MODALITIES = "modalities="  # an item of spec text
_MODEL_NAMES = ("name", "architecture")
_MODEL_SIZES = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
_FRACTION = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?")


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """Rules, the model they were made for (`num_layers` is also in `model`), and where they came from.

    Equality, hash, `repr` and `digest` cover what it does (`rules`, `late`, `model`), not `name` and
    `provenance`. Every bad value, here or in a file, is a `ScheduleError` that names the field. With a known
    layer count, `late` and rules for all layers become rules that list their layers.

    With `levels`, schedules from shallow to deep without levels of their own, it has no rules itself, and `chooser`
    takes one of them for each prompt.

    `modalities` says which rows it means, those of ``"image"``, ``"video"`` and ``"audio"``: names, ``"image,audio"``
    or ``"all"``; images and videos if not given. Where anything else says "visual rows", these are meant.
    """

    rules: tuple[Rule, ...] = ()
    late: Late | None = None
    num_layers: int | None = None
    model: Mapping[str, str | int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    levels: tuple[Schedule, ...] = ()
    chooser: Chooser | None = None
    modalities: tuple[str, ...] = VISUAL
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
        object.__setattr__(self, "modalities", check_modalities(self.modalities))
        levels = self._checked_levels(num_layers)
        values = {
            "rules": normal_form(*merge(rules, self.late, num_layers)),
            "late": self.late if num_layers is None and self.late and self.late.skips_something else None,
            "num_layers": num_layers,
            "levels": levels,
            "model": MappingProxyType({k: model[k] for k in _MODEL_NAMES + _MODEL_SIZES if k in model}),
            "provenance": MappingProxyType(tables.plain_json(self.provenance, "provenance")),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        does = {key: value for key, value in self.to_dict().items() if key in _WHAT_IT_DOES}
        object.__setattr__(self, "_key", json.dumps(does, sort_keys=True))

    def _checked_levels(self, num_layers: int | None) -> tuple[Schedule, ...]:
        """The levels, each with the number of layers and nothing else besides its rules."""
        found = tables.check_list(self.levels, "levels", most=MAX_LEVELS)
        tables.check_type(self.chooser, (Chooser, type(None)), "chooser")
        if not found and self.chooser is None:
            return ()
        if len(found) < 2 or self.chooser is None:
            raise ScheduleError("levels: expected two at least, and a chooser")
        if len(self.chooser.bias) != len(found):
            raise ScheduleError(f"chooser: it is for {len(self.chooser.bias)} levels, there are {len(found)}")
        if self.rules or self.late is not None:
            raise ScheduleError("levels: a schedule has rules, or levels that have them, not both")
        levels = []
        for i, level in enumerate(found):
            tables.check_type(level, (Schedule,), f"levels[{i}]")
            if level.levels:
                raise ScheduleError(f"levels[{i}]: a level has no levels")
            if num_layers is None and level.num_layers is not None:
                raise ScheduleError(f"levels[{i}]: made for {level.num_layers} layers, which num_layers has to say")
            if level.modalities not in (VISUAL, self.modalities):
                raise ScheduleError(f"levels[{i}]: means {','.join(level.modalities)}, which modalities has to say")
            with within(f"levels[{i}]"):
                levels.append(
                    Schedule(rules=level.rules, late=level.late, num_layers=num_layers, modalities=self.modalities)
                )
        if num_layers is not None:
            by_level([level.resolve(num_layers) for level in levels])
        return tuple(levels)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """Check `data` (the JSON layout that `to_dict` writes) and make a schedule of it."""
        known = ("format", "version", "name", "model", "modalities", "rules", "late", "levels", "chooser", "provenance")
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
        more = {key: data[key] for key in ("model", "modalities", "provenance", "name") if key in data}
        for key in ("modalities", "levels", "chooser"):
            if key in data and version < VERSION:
                raise ScheduleError(f"{key}: needs version {VERSION} of the format, the file says version {version}")
        if "levels" in data:
            levels = []
            for i, level in enumerate(tables.check_list(data["levels"], "levels", most=MAX_LEVELS)):
                tables.check_keys(level, f"levels[{i}]", ("rules", "late"), required=("rules",))
                with within(f"levels[{i}]"):
                    levels.append(cls.from_dict({"format": FORMAT, "version": version, **level}))
            more["levels"] = tuple(levels)
        if "chooser" in data:
            with within("chooser"):
                more["chooser"] = Chooser.from_dict(data["chooser"])
        return cls(rules=tuple(rules), late=late, **more)

    @classmethod
    def from_spec(cls, text: str) -> Schedule:
        """Read ``none``, a preset name, or items: ``silent@through_visual:24-35 transform:2,4 attend@keep=0.25:all``.

        An item is a state, or ``late``; after ``@`` the rows that are left out, the share of them that is kept, or
        both with a comma between them; and after ``:`` the layers, or the fraction of the last ones. One more item,
        ``modalities=image,audio`` or ``modalities=all``, says whose rows are meant, also of a preset.
        """
        items = text.split() if isinstance(text, str) else []
        named = [item.removeprefix(_MODALITIES) for item in items if item.startswith(_MODALITIES)]
        items = [item for item in items if not item.startswith(_MODALITIES)]
        if not items:
            raise ScheduleError(f"spec: expected text such as 'none' or 'silent:24-35', got {show(text)}")
        if len(named) > 1:
            raise ScheduleError("spec: modalities: named twice")
        with within("spec", ": "):
            modalities = check_modalities(named[0]) if named else VISUAL
        if items == ["none"]:
            return cls(modalities=modalities)
        if len(items) == 1 and ":" not in items[0]:
            preset = cls.preset(items[0])
            return replace(preset, modalities=modalities) if named else preset
        rules: list[Rule] = []
        late: Late | None = None
        for item in tables.check_list(items, "spec", most=_MAX_RULES):
            head, _, body = item.partition(":")
            state, at, suffix = head.partition("@")
            with within(f"spec: {show(item)}", ": "):
                tables.check_choice(state, (*SKIPS, "late"), "state")
                left_out = LeftOut.parse(suffix)
                if left_out.shares:
                    raise ScheduleError("keep: expected one share; levels are written in files only")
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
            return cls(rules=tuple(rules), late=late, modalities=modalities)

    @classmethod
    def preset(cls, name: str) -> Schedule:
        """The published schedule `name`, for example ``qwen3-vl-8b/20``."""
        known = published()
        if not isinstance(name, str) or name not in known:
            near = _nearest(str(name), tuple(known))
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
        new = keeps or bool(self.levels) or self.modalities != VISUAL
        out: dict[str, Any] = {"format": FORMAT, "version": VERSION if new else _WITHOUT_KEEP}
        if self.name is not None:
            out["name"] = self.name
        out["model"] = dict(self.model)
        if self.modalities != VISUAL:
            out["modalities"] = list(self.modalities)
        out["rules"] = [
            {"layers": tables.format_layers(r.layers), "skip": list(r.skip), **rows_of(r)} for r in self.rules
        ]
        if self.late is not None:
            out["late"] = {"fraction": self.late.fraction, **rows_of(self.late)}
        if self.chooser is not None:
            parts = [level.to_dict() for level in self.levels]
            out["levels"] = [{key: part[key] for key in ("rules", "late") if key in part} for part in parts]
            out["chooser"] = self.chooser.to_dict()
        out["provenance"] = tables.plain_json(self.provenance, "provenance")
        return out

    def to_spec(self) -> str:
        """Spec text with the same rules; the model, name and provenance are not part of it.

        Of a schedule with levels the texts of all of them, for people: it can't be read again.
        """
        if self.levels:
            return " | ".join(level.to_spec() for level in self.levels)
        means = [] if self.modalities == VISUAL else [_MODALITIES + ",".join(self.modalities)]
        states = {skip: state for state, skip in SKIPS.items()}
        items = [(states[rule.skip], rule.left_out, tables.format_layers(rule.layers)) for rule in self.rules]
        if self.late is not None:
            items.append(("late", self.late.left_out, repr(self.late.fraction)))
        rules = [f"{state}{left_out.suffix}:{body}" for state, left_out, body in items] or ["none"]
        return " ".join([*rules, *means])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file as a whole or not at all; the same schedule always gives the same bytes.

        Raises:
            OpSkipError: the file can't be written.
        """
        tables.write_json(self.to_dict(), path)

    def resolve(self, num_layers: int) -> tuple[LayerStates, ...]:
        """The states of each layer of a model of `num_layers`, with the shares of all levels; refused if made for
        another count."""
        tables.check_count(num_layers, "num_layers", most=tables.MAX_LAYER + 1)
        if self.num_layers not in (None, num_layers):
            raise ScheduleError(
                f"num_layers: the schedule was made for {self.num_layers} layers, the model has {num_layers}"
            )
        if self.levels:
            return by_level([level.resolve(num_layers) for level in self.levels])
        _, states = merge(self.rules, self.late, num_layers)
        return tuple(states.get(layer, LayerStates()) for layer in range(num_layers))

    @property
    def is_empty(self) -> bool:
        """True if it skips nothing."""
        return not self.rules and self.late is None and all(level.is_empty for level in self.levels)

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


def _nearest(name: str, known: tuple[str, ...]) -> str:
    """The preset that was probably meant: of the same model the nearest number, else the most similar name."""
    model, _, number = name.rpartition("/")
    same = [each for each in known if each.rpartition("/")[0] == model]
    if model and same and number.isdecimal():
        return min(same, key=lambda each: abs(int(each.rpartition("/")[2]) - int(number)))
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
