"""``generate(inputs_embeds=...)`` copies the embeddings: their mark goes along."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from opskip_compile.passes.marks import MARKS

PREPARE = "prepare_inputs_for_generation"


class MarkCarrier:
    """Stands for a model's `prepare_inputs_for_generation`, and marks the copy of marked embeddings.

    Args:
        model: the model; a class without the method is left alone by `put_on`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.replaced = model, vars(model).get(PREPARE)

    @property
    def prepare(self) -> Any:
        """The model's own method."""
        return self.replaced or getattr(type(self.model), PREPARE).__get__(self.model)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.prepare)

    def __call__(self, *args: Any, **named: Any) -> Any:
        inputs = self.prepare(*args, **named)
        mark, copied = MARKS.get(named.get("inputs_embeds")), inputs.get("inputs_embeds")
        if mark is not None and isinstance(copied, Tensor):
            MARKS.put(copied, mark.mask[:, -copied.shape[1] :])
        return inputs


def put_on(model: nn.Module) -> None:
    """Let ``model`` carry marks, if it generates."""
    if hasattr(type(model), PREPARE) or PREPARE in vars(model):
        setattr(model, PREPARE, MarkCarrier(model))


def take_off(model: nn.Module) -> None:
    """Take `put_on` back, also of a copy; does nothing to a model without."""
    carrier = vars(model).get(PREPARE)
    if isinstance(carrier, MarkCarrier):
        delattr(model, PREPARE)
        if carrier.replaced is not None:
            setattr(model, PREPARE, carrier.replaced)
