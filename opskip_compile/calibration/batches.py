"""Prompts with their answers behind them, as one forward pass of the model takes them (teacher forcing).

Answer rows are text rows, so what a schedule does to them in this one pass is what it does to them when they are
decoded one by one behind the prompt: the visual rows and the KV cache are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opskip_compile._compat import CACHE_ARGUMENTS
from opskip_compile.errors import OpSkipError
from opskip_compile.passes.runtime import kept_rows
from opskip_compile.schedule.left_out import LeftOut, Rows


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass.

    Attributes:
        inputs: keyword inputs; ``input_ids`` int64 ``(batch, sequence)`` ends with the answers.
        visual: bool ``(batch, sequence)``, the visual rows.
        answers: bool ``(batch, sequence)``, the rows that predict a token of the answer.
        names: what each element is called in messages.
    """

    inputs: Mapping[str, Any]
    visual: Tensor
    answers: Tensor
    names: tuple[str, ...]

    @property
    def keep(self) -> int:
        """How many rows, counted from the end, hold all answer rows."""
        columns = self.answers.any(0).nonzero()
        return int(self.answers.shape[1] - columns[0])

    @property
    def prompt(self) -> Tensor:
        """The rows up to the one that predicts the first token of the answer, bool ``(batch, sequence)``."""
        first = self.answers.to(torch.uint8).argmax(1, keepdim=True)
        return torch.arange(self.answers.shape[1], device=self.answers.device) <= first

    @property
    def predicted(self) -> Tensor:
        """The answer token that each answer row predicts, int64 ``(answer rows,)``."""
        ids: Tensor = self.inputs["input_ids"]
        return ids.roll(-1, 1)[self.answers]


@dataclass(frozen=True)
class PromptRows:
    """Rows of one prompt without padding: all, the visual ones, and those up to and including the last visual one."""

    all: int
    visual: int
    through: int

    def kept(self, left_out: LeftOut) -> int:
        """Rows that an operator updates when it is skipped."""
        rows = self.visual if left_out.rows == "visual" else self.through
        return self.all - rows + left_out.critical(rows)

    def pruned(self, visual: int) -> PromptRows:
        """With only so many visual rows; the last of them stands where the last one stood."""
        gone = self.visual - visual
        return PromptRows(self.all - gone, visual, self.through - gone if visual else 0)


def left_out(visual: Tensor, rows: Rows) -> Tensor:
    """The rows that a skipped operator leaves out, bool ``(batch, sequence)``, of the visual rows."""
    if rows == "visual":
        return visual
    kept, live = kept_rows(visual, True)  # as the compiler has it: one definition for both
    return torch.ones_like(visual).scatter(1, kept, ~live)


def prompt_rows(visual: Tensor, mask: Tensor) -> list[PromptRows]:
    """Rows of each element.

    Args:
        visual, mask: bool ``(batch, sequence)``: the visual rows, and the rows that are no padding.
    """
    counted = (mask, visual, mask & left_out(visual, "through_visual"))
    return [PromptRows(*counts) for counts in zip(*(rows.sum(1).tolist() for rows in counted), strict=True)]


def with_answers(
    inputs: Mapping[str, Any], answers: Sequence[Sequence[int]], pad: int
) -> tuple[dict[str, Any], Tensor]:
    """Put an answer behind each prompt of a batch.

    Args:
        inputs: of the prompts, padded on the left; int tensors as long as ``input_ids`` grow with it.
        answers: token ids, at least one for each element.
        pad: the token behind shorter answers.

    Returns:
        The longer inputs, and bool ``(batch, sequence)``, the rows that predict a token of the answer.
    """
    ids: Tensor = inputs["input_ids"]
    batch, length = ids.shape
    longest = max(map(len, answers))
    tail = torch.tensor([[*answer, *[pad] * (longest - len(answer))] for answer in answers], device=ids.device)
    real = torch.tensor([[1] * len(answer) + [0] * (longest - len(answer)) for answer in answers], device=ids.device)
    ends = {"input_ids": tail, "attention_mask": real}
    longer = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == ids.shape and not value.is_floating_point():
            end = ends.get(name, torch.zeros_like(tail))
            longer[name] = torch.cat([value, end.to(value)], 1)
    rows = torch.zeros(batch, length + longest, dtype=torch.bool, device=ids.device)
    rows[:, length - 1 : -1] = real.bool()
    return longer, rows


def check_inputs(inputs: object, name: str) -> dict[str, Any]:
    """Inputs of one prompt or of a batch of prompts, with an attention mask.

    Raises:
        OpSkipError: no mapping, no token ids, no rows, or a forward that can't be extended by an answer.
    """
    if not isinstance(inputs, Mapping):
        raise OpSkipError(f"{name}: expected the mapping that a processor returns, got a {type(inputs).__name__}")
    checked = dict(inputs)
    ids = checked.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        raise OpSkipError(f"{name}: input_ids: expected integers of shape (batch, sequence)")
    if ids.numel() == 0:
        raise OpSkipError(f"{name}: input_ids: the prompt is empty")
    for field in ("position_ids", *CACHE_ARGUMENTS, "inputs_embeds"):
        if checked.get(field) is not None:
            raise OpSkipError(f"{name}: {field}: can't be used here, since answers are put behind the prompt")
    mask = checked.get("attention_mask")
    if mask is None:
        checked["attention_mask"] = mask = torch.ones_like(ids)
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise OpSkipError(f"{name}: attention_mask: expected the shape of input_ids, {tuple(ids.shape)}")
    if "labels" not in checked and not bool(mask[:, -1].all()):
        raise OpSkipError(f"{name}: attention_mask: the prompts of a batch have to be padded on the left")
    return checked


def labelled(inputs: Mapping[str, Any], name: str) -> tuple[dict[str, Any], Tensor]:
    """Take ``labels`` apart: inputs without them, and bool ``(batch, sequence)``, the rows that predict an answer.

    As transformers has it, labels are the token ids of the answer, -100 elsewhere.

    Raises:
        OpSkipError: labels of another shape, or an element without an answer.
    """
    unlabelled = dict(inputs)
    labels = unlabelled.pop("labels")
    ids: Tensor = unlabelled["input_ids"]
    if not isinstance(labels, Tensor) or labels.shape != ids.shape:
        raise OpSkipError(f"{name}: labels: expected the shape of input_ids, {tuple(ids.shape)}")
    rows = torch.zeros_like(ids, dtype=torch.bool)
    rows[:, :-1] = labels[:, 1:] != -100
    if not bool(rows.any(1).all()):
        raise OpSkipError(f"{name}: labels: an element has no answer (all are -100)")
    return unlabelled, rows


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of tensors and plain values, by name."""
    sha = hashlib.sha256()
    for name in sorted(values):
        value = values[name]
        sha.update(name.encode())
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            sha.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            sha.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        else:
            sha.update(repr(value).encode())
    return sha.hexdigest()
