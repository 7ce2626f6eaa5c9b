"""The demo model's own samples for a calibration: training questions of easy-VQA, each about another image."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from opskip_compile.calibration.samples import Samples
from opskip_compile.demo import data
from opskip_compile.errors import OptionError
from opskip_compile.models.prompts import Encoder
from opskip_compile.schedule.schedule import Rows

BATCH = 16  # at most; with fewer samples there are smaller batches, so that some of them can be held out


class DemoEncoder(Encoder):
    """The demo model's tokenizer and image processor, for files of one's own."""

    def __init__(self, processor: data.DemoProcessor) -> None:
        self.processor = processor

    def prompts(self, images: Sequence[Sequence[Any]], texts: Sequence[str]) -> dict[str, Tensor]:
        """One image to a prompt. Raises `OptionError` for more."""
        if any(len(own) != 1 for own in images):
            raise OptionError("image: the demo model takes one image to a prompt")
        return data.encode([own[0] for own in images], texts, self.processor)


class DemoSamples(Samples):
    """``limit`` training questions, the same for a seed; the dense model's answers."""

    def __init__(
        self, model: nn.Module, processor: data.DemoProcessor, limit: int, seed: int = 0, rows: Rows = "visual"
    ) -> None:
        super().__init__(model, rows, answer_tokens=1)
        questions = data.load_questions("train")
        random.Random(seed).shuffle(questions)
        one_each = list({question.image_id: question for question in questions}.values())
        if not 0 < limit <= len(one_each):
            raise OptionError(f"limit: expected 1 to {len(one_each)} samples, got {limit}")
        self.questions, self._processor, self._batch = one_each[:limit], processor, max(1, min(BATCH, limit // 8))

    def size(self) -> int:
        """One item for each batch of questions."""
        return -(-len(self.questions) // self._batch)

    def prompt(self, i: int) -> tuple[dict[str, Any], list[list[int] | None], tuple[str, ...]]:
        """A batch of questions."""
        asked = self.questions[i * self._batch : (i + 1) * self._batch]
        names = tuple(f"training question {i * self._batch + k}" for k in range(len(asked)))
        return dict(data.collate(asked, self._processor)), [None] * len(asked), names
