"""Prompts with pictures or sounds from JSONL files: image, images or audio, prompt, and optionally answer and task.

An image or a sound is a path seen from the file, an http(s) URL or a data URI. A file is read whole, since it is small;
pictures and sounds are opened again for every pass over the lines, so memory does not grow with their number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opskip_compile.errors import OpSkipError
from opskip_compile.models.images import Source, check_source, open_image
from opskip_compile.models.prompts import Encoder, refusal
from opskip_compile.models.sounds import load_sound


@dataclass(frozen=True)
class Line:
    """One prompt, as it stands in a file.

    Attributes:
        name: file and line, for messages.
        images: their paths, URLs or data URIs.
        prompt: the question.
        answers: what counts as right; empty where the line has no answer.
        task: what it belongs to: its own field, else the name of its file.
        sounds: their paths, URLs or data URIs.
    """

    name: str
    images: tuple[Source, ...]
    prompt: str
    answers: tuple[str, ...] = ()
    task: str = ""
    sounds: tuple[Source, ...] = ()

    @property
    def answer(self) -> str | None:
        """The first answer."""
        return self.answers[0] if self.answers else None


def encode(lines: Sequence[Line], encoder: Encoder) -> dict[str, Any]:
    """Inputs of a batch, padded on the left.

    Raises:
        OpSkipError: names the line whose picture or sound can't be read, or that has what the processor does not take,
            or the first one of a batch that it refuses.
    """
    pictures, sounds = [], []
    for line in lines:
        try:
            encoder.check_takes(bool(line.images), bool(line.sounds))
            pictures.append([open_image(path) for path in line.images])
            sounds.append([_sound(path, encoder) for path in line.sounds])
        except OpSkipError as error:
            raise OpSkipError(f"{line.name}: {error}") from error
    try:
        words = [line.prompt for line in lines]
        return dict(encoder.prompts(pictures, words, sounds) if any(sounds) else encoder.prompts(pictures, words))
    except Exception as error:  # processors of others fail with anything
        raise OpSkipError(f"{lines[0].name}: the processor refuses it: {refusal(encoder.processor, error)}") from error


def _sound(source: Source, encoder: Encoder) -> Any:
    """Its values, for the processor."""
    try:
        sound = load_sound(source)
    except OpSkipError as error:
        raise OpSkipError(f"audio: {error}") from error
    if encoder.sampling_rate not in (None, sound.rate):
        raise OpSkipError(
            f"audio: {sound.name} has {sound.rate} values a second, the processor takes {encoder.sampling_rate}: "
            "resample it (ffmpeg -ar, sox -r)"
        )
    return sound.values


def spread(lines: Sequence[Line], limit: int | None) -> list[Line]:
    """``limit`` of the lines, evenly spread over them, if there are more."""
    kept = len(lines) if limit is None else min(limit, len(lines))
    return [lines[i * len(lines) // kept] for i in range(kept)]


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """The samples of a JSONL file; pictures and sounds are looked for beside it, and nothing is downloaded yet.

    The file is UTF-8, with a byte order mark or without. Blank lines are left out.

    Raises:
        OpSkipError: names the file, the line and the field.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        number = file.read_bytes().count(b"\n", 0, error.start) + 1
        raise OpSkipError(f"data: {str(path)!r} is not UTF-8: line {number}: {error.reason}") from error
    except (OSError, ValueError) as error:
        raise OpSkipError(f"data: {str(path)!r} can't be read: {getattr(error, 'strerror', None) or error}") from error
    lines = [
        _line(f"{file.name}, line {number}", line, file)
        for number, line in enumerate(text.split("\n"), 1)  # splitlines() also parts at signs that JSON allows in text
        if line.strip()
    ]
    if not lines:
        raise OpSkipError(f"data: {str(path)!r} holds no samples")
    return lines


@dataclass(frozen=True)
class _Number:
    """A number of a line, as it was written there."""

    text: str


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _line(name: str, text: str, file: Path) -> Line:
    try:
        entry = json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise OpSkipError(f"{name}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise OpSkipError(f"{name}: expected an object with image or audio, prompt and perhaps answer")
    prompt, task = entry.get("prompt"), entry.get("task", file.stem)
    if not isinstance(prompt, str) or not prompt.strip():
        raise OpSkipError(f"{name}: prompt: expected some text")
    if not isinstance(task, str) or not task.strip():
        raise OpSkipError(f"{name}: task: expected a name, or no such field")
    images, sounds = _images(name, entry, file), _sounds(name, entry, file)
    return Line(name, images, prompt, _answers(name, entry.get("answer")), task, sounds)


def _images(name: str, entry: Mapping[str, Any], file: Path) -> tuple[Source, ...]:
    image, images = entry.get("image"), entry.get("images")  # exporters write null for a field that is not there
    if image is not None and images is not None:
        raise OpSkipError(f"{name}: image, images: expected one of them, not both")
    sources = image if images is None else images
    if sources is None and entry.get("audio") is not None:
        return ()
    return _checked(name, "image", sources, file, "expected a path or URL, or images: a list of them")


def _sounds(name: str, entry: Mapping[str, Any], file: Path) -> tuple[Source, ...]:
    audio = entry.get("audio")
    return () if audio is None else _checked(name, "audio", audio, file, "expected a path or URL, or a list of them")


def _checked(name: str, field: str, sources: object, file: Path, expected: str) -> tuple[Source, ...]:
    sources = [sources] if isinstance(sources, str) else sources
    if not isinstance(sources, list) or not sources or not all(isinstance(part, str) and part for part in sources):
        raise OpSkipError(f"{name}: {field}: {expected}")
    try:
        return tuple(check_source(part, file.parent) for part in sources)
    except OpSkipError as error:
        raise OpSkipError(f"{name}: {field}: {error}") from error


def _answers(name: str, answer: object) -> tuple[str, ...]:
    """Numbers count as the text that they were written as; true and false may stand for yes, 1 or true."""
    answers = [] if answer is None else answer if isinstance(answer, list) and answer else [answer]
    if any(isinstance(part, bool) for part in answers):
        raise OpSkipError(f"{name}: answer: expected text: the word that is right in place of true or false")
    texts = [part.text if isinstance(part, _Number) else part for part in answers]
    words = tuple(text for text in texts if isinstance(text, str) and text.strip())
    if len(words) < len(texts):
        raise OpSkipError(f"{name}: answer: expected some text, a list of texts, or no such field")
    return words
