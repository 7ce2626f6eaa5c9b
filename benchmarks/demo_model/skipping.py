"""Skip operators of the demo model eagerly, by forward hooks that zero the visual rows of a branch's output.

A zeroed branch leaves the residual of those rows as it is, while attention still projects K and V of every
row: the definition of a skipped operator, at dense cost. Good for measuring what a schedule does to answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opskip_compile.demo.data import DemoProcessor, Question, batches
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


@contextmanager
def skip(model: Any, skipped: Iterable[Operator], visual: Tensor) -> Iterator[None]:
    """Run `model` with `skipped` operators; `visual` is a bool mask of shape `(batch, sequence)`."""
    kept = (~visual)[..., None]

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] * kept.to(output[0].dtype), *output[1:])
        return output * kept.to(output.dtype)

    layers = model.model.language_model.layers
    handles = [
        (layers[layer].self_attn if name == "attention" else layers[layer].mlp).register_forward_hook(hook)
        for layer, name in skipped
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
        with skip(model, skipped, inputs["mm_token_type_ids"].bool()):
            rows.append(model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float())
    return torch.cat(rows)


def divergence(dense: Tensor, changed: Tensor) -> float:
    """Mean KL(dense || changed) in nats over rows of logits."""
    p, q = dense.log_softmax(-1), changed.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
