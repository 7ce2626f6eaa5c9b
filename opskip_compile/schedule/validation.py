"""Checked reading of what a schedule is written in: JSON tables, lists, and layers such as ``2,4,17-18`` or ``all``.

Nothing is executed and the work is bounded by constants, so a file from a stranger costs a `ScheduleError` at
worst. Each check names its field; `within` puts the enclosing fields in front (``rules[2].layers: ...``).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from opskip_compile.errors import ScheduleError
from opskip_compile.output.files import write_whole

MAX_LAYER = 9_999
MAX_ITEMS = 10_000
MAX_SIZE = 1_000_000_000
MAX_BYTES = 1 << 20

ALL: Literal["all"] = "all"  # every layer of a model, however many it has
Layers = tuple[int, ...] | Literal["all"]

_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


@contextlib.contextmanager
def within(field: str, sep: str = ".") -> Iterator[None]:
    """Name the enclosing `field` in every `ScheduleError` of the block."""
    try:
        yield
    except ScheduleError as error:
        raise ScheduleError(field + sep + str(error)) from error.__cause__


def show(value: object) -> str:
    """A value for a message: short, on one line, with its type where that is not plain."""
    if isinstance(value, (str, int, float, type(None))):
        try:
            text = repr(value)
        except ValueError:  # an integer with too many digits to print
            text = "a huge integer"
        return text if len(text) <= 60 else text[:57] + "..."
    return f"a {type(value).__name__}"


def check_keys(value: object, field: str, known: Collection[str], required: Collection[str] = ()) -> Mapping[str, Any]:
    """A table without unknown or missing keys; `field` is empty for a whole file."""
    if not isinstance(value, Mapping):
        raise ScheduleError(f"{field or 'schedule'}: expected a table of {', '.join(known)}, got {show(value)}")
    dot = field + "." if field else ""
    for key in value:
        if not isinstance(key, str) or key not in known:
            named = key if isinstance(key, str) and key.isidentifier() and len(key) < 60 else show(key)
            raise ScheduleError(f"{dot}{named}: unknown key, known are {', '.join(known)}")
    for key in required:
        if key not in value:
            raise ScheduleError(f"{dot}{key}: missing")
    return value


def check_list(value: object, field: str, most: int = MAX_ITEMS) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ScheduleError(f"{field}: expected a list, got {show(value)}")
    if len(value) > most:
        raise ScheduleError(f"{field}: {len(value)} items, at most {most} are read")
    return list(value)


def check_choice(value: object, choices: Collection[str], field: str) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ScheduleError(f"{field}: expected one of {', '.join(choices)}, got {show(value)}")


def check_type(value: object, kinds: tuple[type, ...], field: str) -> None:
    if not isinstance(value, kinds):
        raise ScheduleError(f"{field}: expected a {kinds[0].__name__}, got {show(value)}")


def check_count(value: object, field: str, most: int = MAX_SIZE) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ScheduleError(f"{field}: expected a positive integer, got {show(value)}")
    if value > most:
        raise ScheduleError(f"{field}: at most {most}, got {show(value)}")
    return value


def check_facts(value: object, field: str, names: Collection[str], sizes: Collection[str]) -> dict[str, str | int]:
    """A flat table whose `names` are text and whose `sizes` are positive integers."""
    facts = dict(check_keys(value, field, (*names, *sizes)))
    for key, fact in facts.items():
        if key in sizes:
            check_count(fact, f"{field}.{key}")
        elif not isinstance(fact, str):
            raise ScheduleError(f"{field}.{key}: expected text, got {show(fact)}")
    return facts


def check_layers(value: object, field: str = "layers") -> Layers:
    """``"all"``, or zero-based layer indices, each named once; returned in order."""
    if isinstance(value, str) and value == ALL:
        return ALL
    seen: set[int] = set()
    for i, layer in enumerate(check_list(value, field)):
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= MAX_LAYER:
            raise ScheduleError(f"{field}[{i}]: expected a layer from 0 to {MAX_LAYER}, got {show(layer)}")
        if layer in seen:
            raise ScheduleError(f"{field}[{i}]: layer {layer} is named twice")
        seen.add(layer)
    if not seen:
        raise ScheduleError(f"{field}: names no layer")
    return tuple(sorted(seen))


def parse_layers(text: str, field: str = "layers") -> Layers:
    """Read ``2,4,17-18`` or ``all``."""
    if text == ALL:
        return ALL
    layers: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ScheduleError(f"{field}: expected layers such as 2,4,17-18, or all, got {show(part)}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= MAX_LAYER:
            raise ScheduleError(f"{field}: expected a range inside 0-{MAX_LAYER}, got {show(part)}")
        layers += range(first, last + 1)
        if len(layers) > MAX_ITEMS:
            raise ScheduleError(f"{field}: names a layer twice")
    return check_layers(layers, field)


def format_layers(layers: Layers) -> str:
    """Write sorted `layers` as ``2,4,17-18``, the inverse of `parse_layers`."""
    if isinstance(layers, str):
        return layers
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def plain_json(value: object, field: str) -> dict[str, Any]:
    """A copy of a table that holds nothing but JSON values."""
    if not isinstance(value, Mapping):
        raise ScheduleError(f"{field}: expected a table, got {show(value)}")
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"{field}: expected JSON values only: {error}") from error
    except RecursionError:
        raise ScheduleError(f"{field}: nested too deeply") from None
    return copy


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file of at most `MAX_BYTES`; every failure is a `ScheduleError`."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ScheduleError("file: expected a JSON file, found a folder or a device")
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ScheduleError(f"file: longer than {MAX_BYTES} bytes")
        return json.loads(raw.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except ScheduleError:
        raise
    except RecursionError:
        raise ScheduleError("file: nested too deeply") from None
    except OSError as error:
        raise ScheduleError(f"file: {error.strerror or error}") from error
    except ValueError as error:  # not UTF-8, not JSON, an integer too long to read, NUL in the path
        raise ScheduleError(f"file: not JSON: {error}") from error


def write_json(value: object, path: str | os.PathLike[str]) -> None:
    """Write beside the target and rename, so that a reader never sees half a file."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ScheduleError(f"{show(key)}: named twice")
        table[key] = value
    return table


def _no_constant(name: str) -> None:
    raise ScheduleError(f"file: {name} is not JSON")
