"""Copies of one model that are compiled in different ways and timed in turn.

Every copy carries a stopwatch around its text decoder, so one forward pass gives two times: that of the whole
model, and that of the part that is compiled.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opskip_compile import api
from opskip_compile.backend import capture
from opskip_compile.output.progress import Step
from opskip_compile.schedule.schedule import Schedule

EAGER, INDUCTOR, OPSKIP = "eager", "Inductor", "opskip"


@dataclass(frozen=True)
class Times:
    """How fast one of the models runs.

    Attributes:
        name: which one.
        first_call: seconds of the first forward, which compiles.
        model, decoder: seconds of the whole forward and of the decoder's part of it, one for each round.
        model_ratio, decoder_ratio: median over rounds of the baseline's time divided by this one's; more than
            1 is faster.
    """

    name: str
    first_call: float
    model: tuple[float, ...]
    decoder: tuple[float, ...]
    model_ratio: float
    decoder_ratio: float

    @property
    def model_median(self) -> float:
        return statistics.median(self.model)

    @property
    def decoder_median(self) -> float:
        return statistics.median(self.decoder)


class TimedModel:
    """One model with a stopwatch around its text decoder."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model, self.decoder_seconds = name, model, 0.0
        decoder = model.get_decoder()
        inner: Callable[..., Any] = decoder.forward

        def timed(*args: Any, **named: Any) -> Any:
            start = time.perf_counter()
            output = inner(*args, **named)
            self.decoder_seconds += time.perf_counter() - start
            return output

        decoder.forward = timed

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, float, float]:
        """Logits of the last row ``(batch, 1, vocabulary)``, seconds of the model, seconds of its decoder."""
        self.decoder_seconds, start = 0.0, time.perf_counter()
        with torch.no_grad():
            logits: Tensor = self.model(**inputs, use_cache=True, logits_to_keep=1).logits
        return logits, time.perf_counter() - start, self.decoder_seconds


def eager(model: Any) -> TimedModel:
    """The model as transformers has it."""
    return TimedModel(EAGER, copy.deepcopy(model))


def inductor(model: Any) -> TimedModel:
    """Plain ``torch.compile`` on the text decoder, the very function that `opskip` compiles.

    It gets opskip's form of DeepStack, too: without it, Qwen3-VL breaks the graph in the layer loop.
    """
    model = copy.deepcopy(model)
    capture.install()
    decoder = model.get_decoder()
    decoder.forward = torch.compile(decoder.forward)
    return TimedModel(INDUCTOR, model)


def opskip(model: Any, schedule: Schedule, lower: str) -> TimedModel:
    """The model after ``opskip_compile.compile``."""
    model = copy.deepcopy(model)
    capture.install()
    return TimedModel(OPSKIP, api.compile(model, schedule, options={"lower": lower}))


def race(
    models: Sequence[TimedModel],
    baseline: str,
    inputs: Mapping[str, Tensor],
    rounds: int,
    step: Step,
) -> tuple[Times, ...]:
    """Run every model once to compile it, then in turn for `rounds` rounds."""
    first = {}
    for each in models:
        step(f"compiling: {each.name}", 0, 0)
        _, first[each.name], _ = each(inputs)
    for each in models:  # the first call after a compilation is no measure
        each(inputs)
    whole: dict[str, list[float]] = {each.name: [] for each in models}
    part: dict[str, list[float]] = {each.name: [] for each in models}
    for done in range(rounds):
        step("timing the prefill", done, rounds)
        for each in models:
            _, model_seconds, decoder_seconds = each(inputs)
            whole[each.name].append(model_seconds)
            part[each.name].append(decoder_seconds)
    step("timing the prefill", rounds, rounds)
    return tuple(
        Times(
            name,
            first[name],
            tuple(whole[name]),
            tuple(part[name]),
            _ratio(whole[baseline], whole[name]),
            _ratio(part[baseline], part[name]),
        )
        for name in whole
    )


def _ratio(baseline: Sequence[float], seconds: Sequence[float]) -> float:
    return statistics.median(dense / each for dense, each in zip(baseline, seconds, strict=True))
