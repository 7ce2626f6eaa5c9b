"""Ask an engine of vLLM and the oracle on transformers the same, and compare what both say of every row."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vllm
from torch import Tensor

from opskip_compile.models.critical import AttentionWatch
from opskip_compile.models.oracle import oracle
from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.schedule import Schedule

DEMO = Path(__file__).parents[2] / "opskip_compile/models/packaged/checkpoint"
SMALL = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "limit_mm_per_prompt": {"image": 2, "video": 0}}
BOUND = 1e-4
"""Of the largest log-probability in size: DESIGN, section 2, for float32."""


@contextmanager
def engine(folder: Path, schedule: str | None, lower: str = "eager", **settings: Any) -> Iterator[Any]:
    """An engine in this process that skips by ``schedule``; vLLM alone without one."""
    asked = {} if schedule is None else {"opskip": {"schedule": schedule, "lower": lower}}
    llm = vllm.LLM(
        str(folder),
        additional_config=asked,
        skip_mm_profiling=True,
        max_logprobs=-1,
        **{
            "max_model_len": 512,
            "dtype": "float32",
            "max_num_seqs": 8,
            "limit_mm_per_prompt": {"image": 2, "video": 0},
            **settings,
        },
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        vllm.distributed.cleanup_dist_env_and_memory()
        gc.collect()


def model_of(llm: Any) -> Any:
    """The model inside of an engine of this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model


def counters(llm: Any) -> Any:
    """What the plug-in has counted."""
    return model_of(llm).opskip.counters


def picture(width: int, height: int, seed: int = 0) -> Any:
    """Noise of this size."""
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Asked:
    """One prompt: its text with a place for each picture."""

    text: str
    images: Sequence[Any] = ()

    @property
    def request(self) -> dict[str, Any]:
        """As vLLM takes it."""
        return {"prompt": self.text, **({"multi_modal_data": {"image": list(self.images)}} if self.images else {})}


def sampling(tokens: int = 4, every_row: bool = True, **more: Any) -> Any:
    """Greedy, with the log-probabilities of the whole vocabulary at every row."""
    return vllm.SamplingParams(
        max_tokens=tokens,
        temperature=0,
        logprobs=-1,
        prompt_logprobs=-1 if every_row else None,
        ignore_eos=True,
        **more,
    )


def said(output: Any) -> Tensor:
    """Log-probabilities ``(rows, vocabulary)`` after each row of the prompt, if it was asked for, and the answer."""
    rows = [*(output.prompt_logprobs or [None])[1:], *output.outputs[0].logprobs]
    return torch.tensor([[row[k].logprob for k in range(len(row))] for row in rows])


class PromptWatch(AttentionWatch):
    """Asks rows of the prompt only, where the answer stands behind it; its level is told beforehand.

    Args:
        prompt: rows of the prompt.
        other: the number of a choice in which the last row that is kept gives way to the first that is not.

    Attributes:
        margins: of each choice, how far these two rows are from one another, in parts of the highest score.
    """

    def __init__(self, prompt: int, other: int | None = None) -> None:
        super().__init__()
        self._prompt, self._other = prompt, other
        self.margins: list[float] = []

    def asked_of(self, visual: list[bool], reads_itself: list[bool]) -> list[int]:
        return super().asked_of(visual[: self._prompt], reads_itself[: self._prompt])

    def without_critical(self, left_out: Tensor, kind: str, rows: LeftOut) -> Tensor:
        dropped = super().without_critical(left_out, kind, rows)
        scores = torch.tensor((self.before if kind == "attention" else self.scores)[0], dtype=torch.float64)
        kept, gone = (mask[0].nonzero()[:, 0] for mask in (left_out & ~dropped, dropped))
        if len(kept) and len(gone):
            last, first = kept[scores[kept].argmin()], gone[scores[gone].argmax()]
            if len(self.margins) == self._other:
                dropped[0, last], dropped[0, first] = True, False
            self.margins.append(float((scores[last] - scores[first]) / scores.max()))
        return dropped


@dataclass
class Reference:
    """The same checkpoint in transformers.

    Attributes:
        model: of transformers, float32.
        visual: token ids of visual rows.
        inputs: what the model takes beside ``input_ids``, of the pictures and the ids.
        margins: of the `PromptWatch` of the last prompt.
    """

    model: Any
    visual: frozenset[int]
    inputs: Any
    margins: Sequence[float] = ()

    def of(
        self,
        images: Sequence[Any],
        prompt: Sequence[int],
        answer: Sequence[int],
        schedule: str | None,
        other: int | None = None,
    ) -> Tensor:
        """Log-probabilities ``(rows, vocabulary)`` after each row of prompt and answer, by the oracle.

        ``other`` as of `PromptWatch`.
        """
        ids = torch.tensor([[*prompt, *answer[:-1]]])
        mask = torch.isin(ids, torch.tensor(sorted(self.visual)))
        mask[:, len(prompt) :] = False
        named = self.inputs(images, ids) if images else {}
        asked = Schedule.of(schedule or "none")
        with torch.no_grad():
            watch = PromptWatch(len(prompt), other)
            if asked.chooser is not None and images:
                first = AttentionWatch(asked.chooser)
                alone = ids[:, : len(prompt)]
                with oracle(self.model, asked, mask[:, : len(prompt)], watch=first):
                    self.model(input_ids=alone, **self.inputs(images, alone))
                watch.levels = first.levels
            with oracle(self.model, asked, mask, watch=watch):
                logits: Tensor = self.model(input_ids=ids, **named).logits[0]
            self.margins = watch.margins
        return logits.log_softmax(-1)


def distances(output: Any, one: Asked, reference: Reference, schedule: str | None) -> Tensor:
    """What vLLM says less what the oracle says, ``(rows, vocabulary)``, in parts of the largest number."""
    got = said(output)
    wanted = reference.of(one.images, output.prompt_token_ids, output.outputs[0].token_ids, schedule)[-len(got) :]
    return (got - wanted[:, : got.shape[1]]) / wanted.abs().max()


def check(outputs: Sequence[Any], asked: Sequence[Asked], reference: Reference, schedule: str | None) -> int:
    """Compare every row, and the greedy tokens; returns how many answers the dense model gives differently."""
    differ = 0
    for output, one in zip(outputs, asked, strict=True):
        error = float(distances(output, one, reference, schedule).abs().max())
        assert error < BOUND, f"{one.text!r}: {error:.1e} of the largest number"
        prompt, answer = output.prompt_token_ids, list(output.outputs[0].token_ids)
        wanted, dense = (
            reference.of(one.images, prompt, answer, each)[-len(answer) :].argmax(-1).tolist()
            for each in (schedule, None)
        )
        assert wanted == answer
        differ += dense != answer
    return differ


def demo() -> Reference:
    """The packaged Qwen3-VL."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(DEMO, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(DEMO).image_processor
    image = model.config.image_token_id

    def inputs(images: Sequence[Any], ids: Tensor) -> dict[str, Any]:
        return {**processor(images=list(images), return_tensors="pt"), "mm_token_type_ids": (ids == image).long()}

    return Reference(model, frozenset([image]), inputs)


IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
