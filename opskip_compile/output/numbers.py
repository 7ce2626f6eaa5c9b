"""Large numbers for people: by which power of 1000 they are divided, and its letter."""

from __future__ import annotations

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def prefix(count: int) -> tuple[float, str]:
    """The largest power of 1000 that ``count`` reaches, and its letter: ``(1e12, "T")``."""
    return next((each for each in _PREFIXES if count >= each[0]), (1.0, ""))
