"""Several questions about one image in one sequence: the image block once, then one block per question.

A block-causal mask lets a question see the image block and its own earlier words only, and its positions
start again right after the image. So every answer row computes what it would compute in a prompt of its own,
while the vision tower and the visual rows are paid for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.demo_model.tiny_model import MERGE, PATCH, TEMPORAL, VISUAL_TOKENS
from opskip_compile.models.packaged.model import IMAGE_PAD, DemoProcessor, encode_prompt

PREFIX = VISUAL_TOKENS + 2


@dataclass(frozen=True, slots=True)
class Packed:
    """Model inputs of a packed batch, and where its answers are."""

    inputs: dict[str, Tensor]
    answer_rows: Tensor  # (answers, 2): batch element and row
    answer_ids: Tensor  # (answers,)


def patchify(pictures: NDArray[np.uint8], processor: DemoProcessor) -> dict[str, Tensor]:
    """What the image processor returns for `(batch, 64, 64, 3)` pictures, several times faster."""
    images = processor.image_processor
    pixels = torch.from_numpy(pictures).float() / 255
    pixels = (pixels - torch.tensor(images.image_mean)) / torch.tensor(images.image_std)
    batch, height, width, channels = pixels.shape
    rows, columns = height // PATCH, width // PATCH
    blocks = pixels.reshape(batch, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, channels)
    blocks = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, TEMPORAL, -1, -1)
    return {
        "pixel_values": blocks.reshape(batch * rows * columns, -1),
        "image_grid_thw": torch.tensor([[1, rows, columns]]).repeat(batch, 1),
    }


def pack(
    pictures: NDArray[np.uint8],
    questions: Sequence[Sequence[tuple[str, str]]],
    processor: DemoProcessor,
    rows: int = 128,
) -> Packed:
    """Pack `(question, answer)` pairs into `rows` rows per picture.

    A question that does not fit any more is left out.
    """
    batch = len(pictures)
    ids = torch.full((batch, rows), processor.tokenizer.pad_token_id, dtype=torch.int64)
    block = torch.full((batch, rows), -1, dtype=torch.int64)
    text_position = torch.zeros(batch, rows, dtype=torch.int64)
    side = int(VISUAL_TOKENS**0.5)
    answers: list[tuple[int, int, int]] = []
    for element, asked in enumerate(questions):
        end = PREFIX
        for number, (text, reply) in enumerate(asked, start=1):
            prompt = _words(text, processor)
            if end + len(prompt) > rows:
                continue
            span = slice(end, end + len(prompt))
            ids[element, span] = torch.tensor(prompt)
            block[element, span] = number
            text_position[element, span] = torch.arange(len(prompt)) + side + 2
            end = span.stop
            answers.append((element, end - 1, processor.token_id(reply)))
    ids[:, :PREFIX] = torch.tensor(encode_prompt("?", VISUAL_TOKENS, processor)[:PREFIX])
    block[:, :PREFIX] = 0
    positions = text_position.repeat(3, 1, 1)
    positions[:, :, :PREFIX] = _image_positions(side)[:, None]
    same = (block[:, :, None] == block[:, None, :]) | (block[:, None, :] == 0)
    found = torch.tensor(answers, dtype=torch.int64).reshape(-1, 3)
    inputs = {
        "input_ids": ids,
        "attention_mask": (same & torch.ones(rows, rows, dtype=torch.bool).tril())[:, None],
        "position_ids": positions,
        "mm_token_type_ids": (ids == processor.token_id(IMAGE_PAD)).to(torch.int64),
        **patchify(pictures, processor),
    }
    return Packed(inputs, found[:, :2], found[:, 2])


_WORDS: dict[tuple[int, str], list[int]] = {}


def _words(text: str, processor: DemoProcessor) -> list[int]:
    key = (id(processor), text)
    if key not in _WORDS:
        _WORDS[key] = encode_prompt(text, 0, processor)[2:]
    return _WORDS[key]


def _image_positions(side: int) -> Tensor:
    grid = torch.arange(side) + 1
    visual = torch.stack([torch.ones(side * side, dtype=torch.int64), grid.repeat_interleave(side), grid.repeat(side)])
    start, end = torch.zeros(3, 1, dtype=torch.int64), torch.full((3, 1), side + 1)
    return torch.cat([start, visual, end], dim=1)
