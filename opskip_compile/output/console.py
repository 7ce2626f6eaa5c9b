"""What the commands share: JSON and tables on stdout, notes on stderr, and files that are looked at before the work."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from opskip_compile.errors import OpSkipError

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDE = 120  # narrower tables of a diff would lose their columns; a narrow terminal breaks the lines instead


def print_json(value: object) -> None:
    print(json.dumps(value, indent=1, default=str))


def print_table(table: RenderableType, least: int = 0) -> None:
    """In the terminal's width, or wider where it is below ``least`` columns."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, least)
    console.print(table)


def note(text: str) -> None:
    """One line on stderr."""
    print(f"opskip: {' '.join(text.split())}", file=sys.stderr)


def check_targets(**targets: Path | None) -> None:
    """See that every file can be written, before the work whose result it shall hold.

    Raises:
        OpSkipError: a folder is missing or not writable, a target is there and is no file, or two are the same. Names
            the option.
    """
    seen: dict[Path, str] = {}
    for field, target in targets.items():
        if target is None:
            continue
        folder = target.parent
        if not folder.is_dir():
            raise OpSkipError(f"{field}: there is no folder {str(folder)!r} to write {target.name!r} to")
        if target.exists() and not target.is_file():
            raise OpSkipError(f"{field}: {str(target)!r} is there already and is no file")
        if not os.access(folder, os.W_OK):
            raise OpSkipError(f"{field}: the folder {str(folder)!r} is not writable")
        other = seen.setdefault(target.resolve(), field)
        if other != field:
            raise OpSkipError(f"{field}: {str(target)!r} is the target of {other} too")


def print_view(view: RenderableType) -> None:
    """In the terminal's colours and, from `WIDE` on, its width; elsewhere ``str(view)``, the same on every machine."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        Console(highlight=False, width=max(console.width, WIDE)).print(view)
    else:
        print(view)
