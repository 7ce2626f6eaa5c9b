"""What is in the folder of a study: its files of figures, and where each came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tables import figures


def files(study: Path) -> str:
    """A row for each file of figures, with what it says of the run that wrote it; pictures and pages bear its name."""

    def row(path: Path) -> tuple[str, ...]:
        found = json.loads(path.read_text(encoding="utf-8"))
        about = found.get("environment", found)
        return (f"[`{path.name}`]({path.name})", _code(about), _machine(about), _versions(about), about.get("date", ""))

    header = ("file", "command", "machine", "versions", "date")
    return figures.table(header, (row(path) for path in sorted(study.glob("*.json"))))


def _code(about: Mapping[str, Any]) -> str:
    return f"`{about['command']}`".replace("|", "\\|") if "command" in about else ""


def _machine(about: Mapping[str, Any]) -> str:
    return ", ".join(about[key] for key in ("device", "processor") if about.get(key))


def _versions(about: Mapping[str, Any]) -> str:
    known = about.get("versions", {})
    return ", ".join(f"{name} {known[name]}" for name in ("torch", "transformers") if name in known)
