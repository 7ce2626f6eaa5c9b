"""Checks of options: a config with the keywords that override it, and errors that name the field."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from os import PathLike
from typing import Any, TypeVar

from opskip_compile.errors import OptionError, ScheduleError
from opskip_compile.schedule.modalities import check_modalities

Config = TypeVar("Config", bound=Any)


def configured(kind: type[Config], config: Config | None, keywords: Mapping[str, Any]) -> Config:
    """The config of a call: ``config``, or the defaults of ``kind``, with the fields in ``keywords`` replaced.

    Raises:
        OptionError: ``config`` is of another class, a keyword is no field (says which field is nearest), or a field has
            a bad value (names it).
    """
    if config is not None and not isinstance(config, kind):
        raise OptionError(f"config: expected {kind.__name__}, got {type(config).__name__}")
    names = [field.name for field in fields(kind)]
    for keyword in keywords:
        if keyword not in names:
            (nearest,) = difflib.get_close_matches(keyword, names, n=1, cutoff=0.0)
            raise OptionError(f"{keyword}: no such option; the nearest known one is {nearest!r}")
    complete: Config = kind(**keywords) if config is None else replace(config, **keywords)
    return complete


def shared_options(config: Any) -> dict[str, str]:
    """What processes that share the work have to have alike: the fields of a config but for those about their disks
    and memory."""
    return {name: repr(value) for name, value in vars(config).items() if name not in ("resume", "kept_bytes")}


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises `OptionError` for a value that is none of ``choices``."""
    known = tuple(choices)
    if value not in known:
        raise OptionError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def checked_modalities(value: object) -> tuple[str, ...]:
    """As `check_modalities`. Raises `OptionError`."""
    try:
        return check_modalities(value)
    except ScheduleError as error:
        raise OptionError(str(error)) from None


def check_count(name: str, value: object, least: int) -> None:
    """Raises `OptionError` for anything but an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name}: expected an integer of at least {least}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raises `OptionError` for anything but True and False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name}: expected True or False, got {value!r}")


def check_path(name: str, value: object) -> None:
    """Raises `OptionError` for anything but a path or None."""
    if value is not None and not isinstance(value, str | PathLike):
        raise OptionError(f"{name}: expected a path, got {value!r}")
