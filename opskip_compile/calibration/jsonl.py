"""Samples from a JSONL file: image or images, prompt and optionally an answer on each line.

The file is read whole, since it is small; pictures are opened again for every pass over the samples, so memory does not
grow with their number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opskip_compile.calibration.samples import Samples
from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.prompting import open_image, processed
from opskip_compile.schedule import Rows


@dataclass(frozen=True)
class Line:
    """One sample, as it stands in a file."""

    name: str
    images: tuple[Path, ...]
    prompt: str
    answer: str | None


class Encoder:
    """Turns prompts with images into a batch that is padded on the left, and answers into token ids.

    Args:
        processor: of transformers, with a tokenizer and an image processor.
    """

    def __init__(self, processor: Any) -> None:
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            raise OptionError(
                f"processor: expected one of transformers for images and text, got a {type(processor).__name__}"
            )
        self.processor = processor

    @classmethod
    def of(cls, processor: Any) -> Encoder:
        """An encoder as it is, a processor of transformers in one."""
        return processor if isinstance(processor, Encoder) else cls(processor)

    def prompts(self, images: Sequence[Sequence[Any]], texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of a batch, of one list of `PIL.Image` and one text for each prompt."""
        return processed(self.processor, images, texts)

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer."""
        found = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in found]


class FileSamples(Samples):
    """Lines of a JSONL file, ``batch`` of them to a forward pass; ``limit`` of them, evenly spread, if there are more.

    Raises:
        OpSkipError: names the file and the line of what is wrong: no JSON, no prompt, a missing picture.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | os.PathLike[str],
        encoder: Encoder,
        rows: Rows = "visual",
        answer_tokens: int = 16,
        batch: int = 1,
        limit: int | None = None,
    ) -> None:
        super().__init__(model, rows, answer_tokens)
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise OptionError(f"batch: expected an integer of at least 1, got {batch!r}")
        lines = read_lines(path)
        kept = len(lines) if limit is None else min(limit, len(lines))
        self.lines = [lines[i * len(lines) // kept] for i in range(kept)]
        self.encoder, self._batch = encoder, batch

    def size(self) -> int:
        """One item for each batch of lines."""
        return -(-len(self.lines) // self._batch)

    def prompt(self, i: int) -> tuple[dict[str, Any], list[list[int] | None], tuple[str, ...]]:
        """Lines of one batch, through the encoder."""
        lines = self.lines[i * self._batch : (i + 1) * self._batch]
        pictures = []
        for line in lines:
            try:
                pictures.append([open_image(path) for path in line.images])
            except OpSkipError as error:
                raise OpSkipError(f"{line.name}: {error}") from error
        names = tuple(line.name for line in lines)
        try:
            inputs = self.encoder.prompts(pictures, [line.prompt for line in lines])
        except Exception as error:  # processors of others fail with anything
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise OpSkipError(f"{names[0]}: the processor refuses it: {text}") from error
        answers = [self._answer(line) for line in lines]
        return dict(inputs), answers, names

    def _answer(self, line: Line) -> list[int] | None:
        if line.answer is None:
            return None
        tokens = self.encoder.answer(line.answer)
        if not tokens:
            raise OpSkipError(f"{line.name}: answer: it has no tokens")
        return tokens


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
    found = [
        _line(f"{file.name}, line {number}", line, file.parent)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]
    if not found:
        raise OpSkipError(f"data: {str(path)!r} holds no samples")
    return found


def _line(name: str, text: str, folder: Path) -> Line:
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise OpSkipError(f"{name}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise OpSkipError(f"{name}: expected an object with image, prompt and perhaps answer")
    given = entry.get("images", entry.get("image"))
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(part, str) and part for part in names):
        raise OpSkipError(f"{name}: image: expected a path, or images: a list of paths")
    prompt, answer = entry.get("prompt"), entry.get("answer")
    if not isinstance(prompt, str) or not prompt.strip():
        raise OpSkipError(f"{name}: prompt: expected some text")
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise OpSkipError(f"{name}: answer: expected some text, or no such field")
    images = tuple(folder / part for part in names)
    for image in images:
        if not image.is_file():
            raise OpSkipError(f"{name}: image: there is no file {str(image)!r}")
    return Line(name, images, prompt, answer)
