"""What a set of skipped operators does to the demo model's answers, measured with the oracle at dense cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opskip_compile.demo.data import DemoProcessor, Question, batches
from opskip_compile.oracle import oracle
from opskip_compile.schedule import OPERATORS, Rule, Schedule


class Operator(NamedTuple):
    """One skippable branch; `name` is `attention` or `ffn`."""

    layer: int
    name: str


def operators(model: Any) -> list[Operator]:
    """All operators of the decoder, in the order of execution."""
    return [Operator(layer, name) for layer in range(len(model.model.language_model.layers)) for name in OPERATORS]


def skipped_by(schedule: Schedule, num_layers: int) -> list[Operator]:
    """The operators that `schedule` skips."""
    states = schedule.resolve(num_layers)
    return [Operator(i, name) for i, state in enumerate(states) for name in OPERATORS if getattr(state, name)]


def as_schedule(skipped: Iterable[Operator], **more: Any) -> Schedule:
    """A schedule that skips these operators for the visual rows."""
    rules = [Rule((operator.layer,), (operator.name,)) for operator in sorted(skipped)]
    return Schedule(rules=tuple(rules), **more)


@torch.inference_mode()
def answer_logits(
    model: Any,
    questions: Sequence[Question],
    processor: DemoProcessor,
    skipped: Sequence[Operator] = (),
    size: int = 50,
) -> Tensor:
    """Answer-row logits of each question, shape `(questions, vocabulary)`, with `skipped` operators."""
    rows = []
    for _, inputs in batches(questions, processor, size):
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        with oracle(model, as_schedule(skipped), inputs["mm_token_type_ids"].bool()):
            rows.append(model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float())
    return torch.cat(rows)


def divergence(dense: Tensor, changed: Tensor) -> float:
    """Mean KL(dense || changed) in nats over rows of logits."""
    p, q = dense.log_softmax(-1), changed.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
