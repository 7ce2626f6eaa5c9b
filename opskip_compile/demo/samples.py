"""The demo model's own samples for a calibration: training questions of easy-VQA, each about another image."""

from __future__ import annotations

import random
from typing import Any

from torch import nn

from opskip_compile.calibration.samples import Samples
from opskip_compile.demo import easy_vqa
from opskip_compile.errors import OptionError
from opskip_compile.models.packaged.model import DemoProcessor
from opskip_compile.schedule.left_out import Rows

BATCH = 16  # at most; with fewer samples there are smaller batches, so that some of them can be held out


class DemoSamples(Samples):
    """``limit`` training questions, the same for a seed; the dense model's answers."""

    def __init__(
        self, model: nn.Module, processor: DemoProcessor, limit: int, seed: int = 0, rows: Rows = "visual"
    ) -> None:
        super().__init__(model, rows, answer_tokens=1)
        questions = easy_vqa.load_questions("train")
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
        return dict(easy_vqa.collate(asked, self._processor)), [None] * len(asked), names
