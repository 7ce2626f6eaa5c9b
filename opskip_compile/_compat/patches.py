"""Replace a value of another package, and put the very same value back."""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any

import torch

_LOCK = threading.RLock()  # no thread may see a patch that another one has only begun to put on


def torch_is_older_than(major: int, minor: int) -> bool:
    """True if this torch is of a release before ``major.minor``; a nightly of that release is not."""
    found = torch.__version__.split(".")[:2]
    return (int(found[0]), int(found[1])) < (major, minor)


class Patch:
    """One attribute of a class, or one item of a table, that is replaced for a while.

    It is on from `apply` to `revert`, and in a ``with`` block; blocks of several threads may overlap. All of it may be
    called again and in any order. A value that somebody else has replaced since is left as it is.

    Args:
        place: gives the class and the attribute's name, or the table and the key; None if there is nothing to replace.
            It is called when the patch is first needed, so that it may load a module that is slow to load.
        replace: makes the new value of the old one; called once for each old value.
        needed: false for a version of the package that does not need the patch, which then does nothing.
    """

    def __init__(
        self,
        place: Callable[[], tuple[Any, Any] | None],
        replace: Callable[[Any], Any],
        needed: bool = True,
    ) -> None:
        self.needed = needed
        self._place, self._replace = place, replace
        self._applied, self._blocks = False, 0
        self._on: tuple[Any, Any] | None = None  # where the new value stands at present
        self._original: Any = None
        self._new: Any = None
        self._here = threading.local()

    @property
    def is_on(self) -> bool:
        """True while the value is replaced."""
        return self._on is not None

    @property
    def is_used_here(self) -> bool:
        """True within a ``with`` block of this thread."""
        return getattr(self._here, "blocks", 0) > 0

    def apply(self) -> None:
        """Replace the value, if it is not replaced."""
        with _LOCK:
            self._applied = True
            self._settle()

    def revert(self) -> None:
        """Put the value back that was there, if no ``with`` block needs the new one."""
        with _LOCK:
            self._applied = False
            self._settle()

    def __enter__(self) -> Patch:
        with _LOCK:
            self._blocks += 1
            self._settle()
        self._here.blocks = getattr(self._here, "blocks", 0) + 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._here.blocks -= 1
        with _LOCK:
            self._blocks -= 1
            self._settle()

    def _settle(self) -> None:
        wanted = self.needed and (self._applied or self._blocks > 0)
        if wanted and self._on is None:
            place = self._place()
            if place is None:
                return
            original = _read(*place)
            if self._new is None or original is not self._original:
                self._original, self._new = original, self._replace(original)
            _write(*place, self._new)
            self._on = place
        elif not wanted and self._on is not None:
            place, self._on = self._on, None
            if _read(*place) is self._new:
                _write(*place, self._original)


def _read(owner: Any, name: Any) -> Any:
    return owner[name] if isinstance(owner, MutableMapping) else vars(owner)[name]


def _write(owner: Any, name: Any, value: Any) -> None:
    if isinstance(owner, MutableMapping):
        owner[name] = value
    else:
        setattr(owner, name, value)
