"""Prompts with pictures from JSONL files: image or images, prompt, and optionally answer and task on each line.

A file is read whole, since it is small; pictures are opened again for every pass over the lines, so memory does not
grow with their number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opskip_compile.errors import OpSkipError, in_one_line
from opskip_compile.models.images import open_image
from opskip_compile.models.prompts import Encoder


@dataclass(frozen=True)
class Line:
    """One prompt, as it stands in a file.

    Attributes:
        name: file and line, for messages.
        images: their paths.
        prompt: the question.
        answers: what counts as right; empty where the line has no answer.
        task: what it belongs to: its own field, else the name of its file.
    """

    name: str
    images: tuple[Path, ...]
    prompt: str
    answers: tuple[str, ...] = ()
    task: str = ""

    @property
    def answer(self) -> str | None:
        """The first answer."""
        return self.answers[0] if self.answers else None


def encode(lines: Sequence[Line], encoder: Encoder) -> dict[str, Any]:
    """Inputs of a batch, padded on the left.

    Raises:
        OpSkipError: names the line whose picture can't be read, or the first one of a batch that a processor refuses.
    """
    pictures = []
    for line in lines:
        try:
            pictures.append([open_image(path) for path in line.images])
        except OpSkipError as error:
            raise OpSkipError(f"{line.name}: {error}") from error
    try:
        return dict(encoder.prompts(pictures, [line.prompt for line in lines]))
    except Exception as error:  # processors of others fail with anything
        raise OpSkipError(f"{lines[0].name}: the processor refuses it: {in_one_line(error)}") from error


def spread(lines: Sequence[Line], limit: int | None) -> list[Line]:
    """``limit`` of the lines, evenly spread over them, if there are more."""
    kept = len(lines) if limit is None else min(limit, len(lines))
    return [lines[i * len(lines) // kept] for i in range(kept)]


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """The samples of a JSONL file; pictures are looked for beside it. Blank lines are left out.

    Raises:
        OpSkipError: names the file, the line and the field.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OpSkipError(f"data: {str(path)!r} can't be read: {getattr(error, 'strerror', None) or error}") from error
    lines = [
        _line(f"{file.name}, line {number}", line, file)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]
    if not lines:
        raise OpSkipError(f"data: {str(path)!r} holds no samples")
    return lines


def _line(name: str, text: str, file: Path) -> Line:
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise OpSkipError(f"{name}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise OpSkipError(f"{name}: expected an object with image, prompt and perhaps answer")
    paths = entry.get("images", entry.get("image"))
    names = [paths] if isinstance(paths, str) else paths
    if not isinstance(names, list) or not names or not all(isinstance(part, str) and part for part in names):
        raise OpSkipError(f"{name}: image: expected a path, or images: a list of paths")
    prompt, answer, task = entry.get("prompt"), entry.get("answer"), entry.get("task", file.stem)
    if not isinstance(prompt, str) or not prompt.strip():
        raise OpSkipError(f"{name}: prompt: expected some text")
    answers = [] if answer is None else answer if isinstance(answer, list) and answer else [answer]
    if not all(isinstance(text, str) and text.strip() for text in answers):
        raise OpSkipError(f"{name}: answer: expected some text, a list of texts, or no such field")
    if not isinstance(task, str) or not task.strip():
        raise OpSkipError(f"{name}: task: expected a name, or no such field")
    images = tuple(file.parent / part for part in names)
    for image in images:
        if not image.is_file():
            raise OpSkipError(f"{name}: image: there is no file {str(image)!r}")
    return Line(name, images, prompt, tuple(answers), task)
