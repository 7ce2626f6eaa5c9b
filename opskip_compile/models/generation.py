"""Greedy answers of a model, compiled or not, to a batch of prompts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile.errors import OpSkipError
from opskip_compile.models.rows import visual_tokens
from opskip_compile.schedule.modalities import MODALITIES


def greedy(model: nn.Module, inputs: Mapping[str, Any], tokens: int, names: Sequence[str]) -> list[list[int]]:
    """Token ids of the answers, each up to the first token that ends one; at least one token.

    Args:
        model: of transformers, with ``generate``.
        inputs: of the prompts, padded on the left. What the model's forward does not take is left out.
        tokens: of an answer, at most.
        names: of the prompts, for messages.

    Raises:
        OpSkipError: logits that are not finite; names the prompt.
    """
    known = inspect.signature(model.forward).parameters
    inputs = {name: value for name, value in placed(inputs, model).items() if name in known}
    length, ends = inputs["input_ids"].shape[1], _ends(model)
    with torch.no_grad():
        generated = model.generate(  # type: ignore[operator]
            **inputs,
            suppress_tokens=list(visual_tokens(model, MODALITIES)),  # rows of an answer are text
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=padding(model),
            return_dict_in_generate=True,
            output_logits=True,
        )
    for name, scores in zip(names, generated.logits[0], strict=True):
        if not bool(torch.isfinite(scores).all()):
            raise OpSkipError(f"{name}: the model's logits are not finite")
    answers = []
    for row in generated.sequences[:, length:].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[: max(stop, 1)])  # an empty answer is the decision to end
    return answers


def placed(inputs: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Inputs on the model's device, floats in its dtype."""
    first = next(model.parameters())

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(first.device, first.dtype) if value.is_floating_point() else value.to(first.device)

    return {name: place(value) for name, value in inputs.items()}


def padding(model: nn.Module) -> int:
    """The token behind answers that are shorter than others of their batch."""
    token = getattr(getattr(model, "generation_config", None), "pad_token_id", None)
    return token if isinstance(token, int) else 0


def _ends(model: nn.Module) -> set[int]:
    tokens = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return {tokens} if isinstance(tokens, int) else set(tokens or ())
