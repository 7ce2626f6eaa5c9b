"""One line of what a doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One fact.

    Attributes:
        topic: what it belongs to, such as ``"versions"``.
        name: of what.
        value: in words.
        fine: False if something does not work or was not tested with this package; None for a plain fact.
        advice: what to do where it is not fine.
    """

    topic: str
    name: str
    value: str
    fine: bool | None = None
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {name: getattr(self, name) for name in ("topic", "name", "value", "fine", "advice")}

    def __str__(self) -> str:
        mark = {True: "ok", False: "!!", None: "  "}[self.fine]
        return f"{mark} {self.name}: {self.value}" + (f"\n   -> {self.advice}" if self.advice else "")
