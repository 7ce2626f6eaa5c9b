"""Several questions about the same images in one sequence: the image blocks once, then one block per question.

A block-causal mask lets a question see the image blocks and its own earlier tokens only, and its positions start
again right after the images. So every answer row computes what it would compute in a prompt of its own, while the
tower and the visual rows are paid for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.vqa.architectures import ROWS, Kit
from benchmarks.vqa.facts import SIDE, Labels
from benchmarks.vqa.pointing import NOWHERE, Point


@dataclass(frozen=True, slots=True)
class Sample:
    """One or two images, their questions as `(prompt ids, answer ids, points)` and the labels of their cells."""

    pictures: tuple[NDArray[np.uint8], ...]
    asked: list[tuple[list[int], list[int], list[Point]]]
    labels: list[Labels] = field(default_factory=list)
    task: str = ""


@dataclass(frozen=True, slots=True)
class Packed:
    """Model inputs of a packed batch, where its answers are, and what its visual rows show."""

    inputs: dict[str, Tensor]
    rows: Tensor  # (tokens, 3): batch element, row that predicts the token, number of the question in its element
    targets: Tensor  # (tokens,)
    weights: Tensor  # (tokens,): a question counts the same however long its answer is
    labels: Tensor  # (batch * images * 144, heads), or empty
    points: Tensor  # (points, 4): batch element, which of the two heads, row, column that it should look at
    shares: Tensor  # (points,): the share of its attention
    tasks: tuple[str, ...]

    def to(self, device: torch.device) -> Packed:
        """The same on a device."""
        tensors = {name: getattr(self, name).to(device) for name in ("rows", "targets", "weights", "labels", "points")}
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, shares=self.shares.to(device), **tensors)


def positions(images: int, kit: Kit) -> tuple[Tensor, int]:
    """Positions of the image blocks' rows, `(axes, rows)`, and the position that the question starts with."""
    if not kit.family.two_axes:
        count = images * len(kit.block())
        return torch.arange(count)[None], count
    grid, parts, start = torch.arange(SIDE), [], 0
    for _ in range(images):
        for _ in kit.family.before:
            parts.append(torch.full((3, 1), start))
            start += 1
        time = torch.full((ROWS,), start)
        parts.append(torch.stack([time, start + grid.repeat_interleave(SIDE), start + grid.repeat(SIDE)]))
        start += SIDE
        for _ in kit.family.after:
            parts.append(torch.full((3, 1), start))
            start += 1
    return torch.cat(parts, dim=1), start


def pack(samples: Sequence[Sample], kit: Kit, length: int) -> Packed:
    """Pack samples, all with as many images, into `length` rows each; a question that does not fit is left out."""
    images = len(samples[0].pictures)
    block = kit.block() * images
    place, start = positions(images, kit)
    ids = torch.full((len(samples), length), kit.tokenizer.pad_token_id, dtype=torch.int64)
    part = torch.full((len(samples), length), -1, dtype=torch.int64)
    text_position = torch.zeros(len(samples), length, dtype=torch.int64)
    rows: list[tuple[int, int, int]] = []
    targets: list[int] = []
    weights: list[float] = []
    looks: list[tuple[int, int, int, int]] = []
    shares: list[float] = []
    visual = [column for column, token in enumerate(block) if token == kit.ids(kit.family.image)[0]]
    for element, sample in enumerate(samples):
        end, number = len(block), 0
        for prompt, answer, points in sample.asked:
            tokens = [*prompt, *answer[:-1]]
            if end + len(tokens) > length:
                continue
            span = slice(end, end + len(tokens))
            ids[element, span] = torch.tensor(tokens)
            part[element, span] = number + 1
            text_position[element, span] = torch.arange(len(tokens)) + start
            rows += [(element, end + len(prompt) - 1 + step, number) for step in range(len(answer))]
            targets += answer
            weights += [1 / max(1, len(answer) - 1)] * len(answer)
            for step, point in enumerate(points):
                for head, cells in enumerate(point):
                    columns = [0 if cell == NOWHERE else visual[cell] for cell in cells]
                    looks += [(element, head, end + len(prompt) - 1 + step, column) for column in columns]
                    shares += [1 / len(columns)] * len(columns)
            end, number = span.stop, number + 1
    ids[:, : len(block)] = torch.tensor(block)
    part[:, : len(block)] = 0
    axes = text_position.repeat(len(place), 1, 1)
    axes[:, :, : len(block)] = place[:, None]
    seen = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    labels = [each for sample in samples for each in sample.labels]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.where(seen, 0.0, -1e30)[:, None],
        "position_ids": axes if kit.family.two_axes else axes[0],
        **kit.pixels(np.stack([picture for sample in samples for picture in sample.pictures])),
    }
    if kit.family.two_axes:
        inputs["mm_token_type_ids"] = (ids == kit.ids(kit.family.image)[0]).to(torch.int64)
    return Packed(
        inputs,
        torch.tensor(rows, dtype=torch.int64).reshape(-1, 3),
        torch.tensor(targets, dtype=torch.int64),
        torch.tensor(weights),
        torch.from_numpy(np.concatenate(labels)) if labels else torch.empty(0, dtype=torch.int64),
        torch.tensor(looks, dtype=torch.int64).reshape(-1, 4),
        torch.tensor(shares),
        tuple(sample.task for sample in samples),
    )
