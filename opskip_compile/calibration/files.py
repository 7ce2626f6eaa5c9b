"""Samples from a JSONL file: image, images or audio, prompt and optionally an answer on each line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from opskip_compile.calibration.option_checks import check_count
from opskip_compile.calibration.samples import Samples
from opskip_compile.errors import OpSkipError
from opskip_compile.models.jsonl import Line, encode, read_lines, spread
from opskip_compile.models.prompts import Encoder
from opskip_compile.schedule.left_out import Rows
from opskip_compile.schedule.modalities import VISUAL


class FileSamples(Samples):
    """Lines, or those of a JSONL file, ``batch`` of them to a forward pass; at most ``limit`` of them, evenly spread.

    Raises:
        OpSkipError: names the file and the line of what is wrong: no JSON, no prompt, a missing picture, a sound of
            another rate than the processor takes.
    """

    def __init__(
        self,
        model: nn.Module,
        source: str | os.PathLike[str] | Sequence[Line],
        encoder: Encoder,
        rows: Rows = "visual",
        answer_tokens: int = 16,
        batch: int = 1,
        limit: int | None = None,
        modalities: tuple[str, ...] = VISUAL,
    ) -> None:
        super().__init__(model, rows, answer_tokens, modalities)
        check_count("batch", batch, 1)
        lines = read_lines(source) if isinstance(source, str | os.PathLike) else list(source)
        self.lines = spread(lines, limit)
        self.encoder, self._batch = encoder, batch

    def size(self) -> int:
        """One item for each batch of lines."""
        return -(-len(self.lines) // self._batch)

    def prompt(self, i: int) -> tuple[dict[str, Any], list[list[int] | None], tuple[str, ...]]:
        """Lines of one batch, through the encoder."""
        lines = self.lines[i * self._batch : (i + 1) * self._batch]
        inputs = encode(lines, self.encoder)
        answers = [self._answer(line) for line in lines]
        return inputs, answers, tuple(line.name for line in lines)

    def _answer(self, line: Line) -> list[int] | None:
        if line.answer is None:
            return None
        tokens = self.encoder.answer(line.answer)
        if not tokens:
            raise OpSkipError(f"{line.name}: answer: it has no tokens")
        return tokens
