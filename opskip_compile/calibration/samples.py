"""The samples of a calibration: processor outputs in memory, or lines of a file that are read again for every pass.

Whatever can be wrong with a sample is found before the model runs: every one is looked at once, and only the number of
its rows is kept. Memory does not grow with the number of samples of a file.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile.calibration.batches import (
    Batch,
    PromptRows,
    check_inputs,
    digest,
    labelled,
    prompt_rows,
    with_answers,
)
from opskip_compile.calibration.journal import Journal
from opskip_compile.errors import OpSkipError
from opskip_compile.models.generation import greedy, padding, placed
from opskip_compile.models.rows import visual_tokens
from opskip_compile.output.progress import Step
from opskip_compile.schedule.left_out import Rows
from opskip_compile.schedule.modalities import VISUAL, in_words, tokens_by_modality


@dataclass(frozen=True)
class SampleInfo:
    """What one forward pass takes: one sample, or several as a batch.

    Attributes:
        names: what its elements are called in messages.
        rows: the rows of each prompt.
        digest: of its content.
    """

    names: tuple[str, ...]
    rows: tuple[PromptRows, ...]
    digest: str


class Samples(ABC):
    """Items in a fixed order. `check` has to run first."""

    def __init__(self, model: nn.Module, rows: Rows, answer_tokens: int, modalities: tuple[str, ...] = VISUAL) -> None:
        self.model, self.rows, self.answer_tokens, self.modalities = model, rows, answer_tokens, modalities
        self.items: list[SampleInfo] = []
        self._tokens = visual_tokens(model, modalities)
        self._known_answers: dict[int, list[list[int] | None]] = {}  # answers that came with the samples
        self._answers: dict[int, list[list[int]]] = {}
        if not self._tokens:
            others = tuple(tokens_by_modality(getattr(model, "config", None)))
            advice = f"; it has rows of {in_words(others)}: modalities={','.join(others)}" if others else ""
            raise OpSkipError(
                f"model: the config of {type(model).__name__} names no {modalities[0]} token, so its visual rows are "
                f"not known{advice}"
            )

    @property
    def digest(self) -> str:
        """Of all items in their order."""
        return hashlib.sha256("".join(item.digest for item in self.items).encode()).hexdigest()[:16]

    @property
    def count(self) -> int:
        """Samples in all."""
        return sum(len(item.names) for item in self.items)

    @abstractmethod
    def size(self) -> int:
        """How many items there are."""

    @abstractmethod
    def prompt(self, i: int) -> tuple[dict[str, Any], list[list[int] | None], tuple[str, ...]]:
        """Inputs of an item, the answers that came with it, and names. Inputs may have ``labels`` instead."""

    def check(self, step: Step = lambda what, done, total: None) -> None:
        """Look at every item once.

        Raises:
            OpSkipError: names the first sample that is no prompt with visual rows.
        """
        size = self.size()
        if not size:
            raise OpSkipError("samples: there are none")
        self.items = []
        for i in range(size):
            step("reading the samples", i, size)
            inputs, answers, names = self.prompt(i)
            visual, mask = self._visual(inputs), inputs["attention_mask"].bool()
            for name, element in zip(names, visual, strict=True):
                if not bool(element.any()):
                    which = "visual rows" if self.modalities == VISUAL else f"rows of {in_words(self.modalities)}"
                    raise OpSkipError(f"{name}: the prompt has no {which}")
            if "labels" in inputs:
                _, rows = labelled(inputs, names[0])
                mask = mask & (rows.cumsum(1) - rows.int() == 0)  # the prompt ends with the first answer row
            else:
                self._known_answers[i] = answers
            content = digest({**inputs, "the answers": answers})
            self.items.append(SampleInfo(names, tuple(prompt_rows(visual & mask, mask)), content))
        step("reading the samples", size, size)

    def answer(self, journal: Journal, step: Step = lambda what, done, total: None) -> None:
        """Let the dense model answer greedily where no answer came with a sample; several processes share the work."""
        unanswered = [i for i, answers in self._known_answers.items() if None in answers]
        missing = [i for i in unanswered if journal.get("answers", i) is None]

        def answers_of(i: int) -> Iterator[tuple[str, list[list[int]]]]:
            yield "answers", greedy(self.model, self.prompt(i)[0], self.answer_tokens, self.items[i].names)

        journal.share(
            missing, answers_of, lambda i: self.items[i].names, lambda done, size: step("answering", done, size)
        )
        for i, answers in self._known_answers.items():
            known = journal.get("answers", i) or answers
            self._answers[i] = [list(was or now) for was, now in zip(answers, known, strict=True)]

    def inputs(self, i: int) -> dict[str, Any]:
        """The inputs of one item as they came, on the model's device and in its dtype."""
        inputs, _, _ = self.prompt(i)
        inputs.pop("labels", None)
        return placed(inputs, self.model)

    def batch(self, i: int) -> Batch:
        """One item with its answers, on the model's device and in its dtype."""
        inputs, _, names = self.prompt(i)
        inputs = placed(inputs, self.model)
        if "labels" in inputs:
            inputs, rows = labelled(inputs, names[0])
        else:
            inputs, rows = with_answers(inputs, self._answers[i], padding(self.model))
        return Batch(inputs, self._visual(inputs), rows, names)

    def split(self, holdout: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Items to calibrate on, and items that are held out: disjoint, the same for a seed.

        Raises:
            OpSkipError: there is only one item and some are to be held out.
        """
        order = list(range(len(self.items)))
        random.Random(seed).shuffle(order)
        out = round(holdout * len(order))
        if holdout > 0:
            out = max(out, 1)
        if out >= len(order):
            raise OpSkipError(f"samples: {len(order)} given, of which {out} would be held out: none would be left")
        return tuple(sorted(order[out:])), tuple(sorted(order[:out]))

    def _visual(self, inputs: Mapping[str, Any]) -> Tensor:
        ids: Tensor = inputs["input_ids"]
        mask: Tensor = inputs["attention_mask"]
        return torch.isin(ids, torch.tensor(self._tokens, device=ids.device)) & mask.bool()


class InMemorySamples(Samples):
    """Processor outputs in memory: each a mapping of tensors for one prompt, or for several padded on the left."""

    def __init__(
        self,
        model: nn.Module,
        samples: Sequence[Mapping[str, Any]],
        rows: Rows = "visual",
        answer_tokens: int = 16,
        modalities: tuple[str, ...] = VISUAL,
    ) -> None:
        super().__init__(model, rows, answer_tokens, modalities)
        if isinstance(samples, Mapping) or not isinstance(samples, Sequence):
            raise OpSkipError(
                f"samples: expected a list of processor outputs or a file, got a {type(samples).__name__}"
            )
        self._samples = samples

    def size(self) -> int:
        """One item for each mapping."""
        return len(self._samples)

    def prompt(self, i: int) -> tuple[dict[str, Any], list[list[int] | None], tuple[str, ...]]:
        """The mapping itself."""
        inputs = check_inputs(self._samples[i], f"samples[{i}]")
        batch = len(inputs["input_ids"])
        names = tuple(f"samples[{i}]" if batch == 1 else f"samples[{i}], element {k}" for k in range(batch))
        return inputs, [None] * batch, names
