"""The questions of an evaluation: the lines of its files, checked and sorted by task."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from opskip_compile.errors import OpSkipError
from opskip_compile.evaluation.measures import TaskRows
from opskip_compile.models.images import content_of
from opskip_compile.models.jsonl import Line, read_lines, spread


def checked_lines(
    source: Any, field: str, limit: int | None, *, answered: bool = False, unlike: Sequence[Line] = ()
) -> list[Line]:
    """The lines of one or several files, each task's together.

    Args:
        source: a path, paths, or lines.
        field: what the messages call it.
        limit: lines at most for each task, evenly spread.
        answered: every line has to have an answer.
        unlike: lines that may not be among them: same pictures and sounds, same prompt.

    Raises:
        OpSkipError: names the line.
    """
    parts = [source] if isinstance(source, str | os.PathLike) else list(source)
    lines = [line for part in parts for line in ([part] if isinstance(part, Line) else read_lines(part))]
    if not lines:
        raise OpSkipError(f"{field}: there are no lines")
    known = {_content(line) for line in unlike}
    for line in lines:
        if answered and not line.answers:
            raise OpSkipError(f"{line.name}: answer: needed to tell what is right")
        if known and _content(line) in known:
            what = "pictures" if line.images else "sounds"
            raise OpSkipError(f"{line.name}: the same {what} and prompt are in data too")
    tasks: dict[str, list[Line]] = {}
    for line in lines:
        tasks.setdefault(line.task, []).append(line)
    return [line for of_task in tasks.values() for line in spread(of_task, limit)]


def _content(line: Line) -> bytes:
    sha = hashlib.sha256(line.prompt.encode())
    for field, sources in (("image", line.images), ("audio", line.sounds)):
        for source in sources:
            try:
                sha.update(hashlib.sha256(field.encode() + content_of(source)).digest())
            except OpSkipError as error:
                raise OpSkipError(f"{line.name}: {field}: {error}") from error
    return sha.digest()


def task_rows(lines: Sequence[Line]) -> dict[str, TaskRows]:
    """Places of each task's lines, and which of them are about the same pictures and sounds."""
    places: dict[str, list[int]] = {}
    for i, line in enumerate(lines):
        places.setdefault(line.task, []).append(i)
    tasks = {}
    for task, indices in places.items():
        numbers: dict[Any, int] = {}
        groups = tuple(numbers.setdefault((lines[i].images, lines[i].sounds), len(numbers)) for i in indices)
        tasks[task] = TaskRows(tuple(indices), groups)
    return tasks
