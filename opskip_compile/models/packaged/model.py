"""The packaged model: loaded, and called with images and questions.

A prompt is the image block followed by the words of one question, and the answer is the one token that the last row
predicts. The commands and the training recipe share this module, so both see the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.models.checkpoint import quiet_loading
from opskip_compile.models.optional import INSTALL_HINT, require
from opskip_compile.models.prompts import Encoder

NAME = "demo"  # what commands call it
MODEL_DIR = Path(__file__).parent / "checkpoint"
SCHEDULE_FILE = Path(__file__).parent / "schedule.json"
IMAGE_PAD = "<|image_pad|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"


@dataclass(frozen=True, slots=True)
class DemoProcessor:
    """The tokenizer and the image processor of the demo model, both from transformers."""

    tokenizer: Any
    image_processor: Any

    def token_id(self, token: str) -> int:
        """The id of `token`; raises `OpSkipError` for a word that the vocabulary lacks."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        if token not in vocabulary:
            raise OpSkipError(f"the demo model's vocabulary has no token {token!r}")
        return vocabulary[token]


class DemoEncoder(Encoder):
    """The demo model's tokenizer and image processor, for files of one's own."""

    def __init__(self, processor: DemoProcessor) -> None:
        self.processor = processor

    def prompts(
        self, images: Sequence[Sequence[Any]], texts: Sequence[str], sounds: Sequence[Sequence[Any]] = ()
    ) -> dict[str, Tensor]:
        """One image to a prompt. Raises `OptionError` for more."""
        if any(len(pictures) != 1 for pictures in images):
            raise OptionError("image: the demo model takes one image to a prompt")
        return encode([pictures[0] for pictures in images], texts, self.processor)


def load_processor(folder: Path = MODEL_DIR) -> DemoProcessor:
    """Tokenizer and image processor from a saved model folder. Needs no torchvision and no network."""
    transformers = require("transformers")
    try:
        return DemoProcessor(
            transformers.PreTrainedTokenizerFast.from_pretrained(folder),
            transformers.Qwen2VLImageProcessorPil.from_pretrained(folder),
        )
    except (AttributeError, OSError, ValueError) as error:
        raise OpSkipError(f"{folder} is not a demo model folder ({error}); {INSTALL_HINT}") from error


def load_model(folder: Path = MODEL_DIR, dtype: torch.dtype = torch.float32) -> Any:
    """The demo model, a `Qwen3VLForConditionalGeneration` in evaluation mode."""
    transformers = require("transformers")
    try:
        with quiet_loading():
            return transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    except (AttributeError, OSError, ValueError) as error:
        raise OpSkipError(f"{folder} is not a demo model folder ({error}); {INSTALL_HINT}") from error


def encode_prompt(text: str, visual_tokens: int, processor: DemoProcessor) -> list[int]:
    """Token ids of a prompt: vision start, `visual_tokens` placeholders, vision end, the question's words."""
    start, pad, end = (processor.token_id(token) for token in (VISION_START, IMAGE_PAD, VISION_END))
    words: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not words:
        raise OpSkipError("the question is empty")
    return [start, *([pad] * visual_tokens), end, *words]


def encode(images: Sequence[Any], texts: Sequence[str], processor: DemoProcessor) -> dict[str, Tensor]:
    """Keyword inputs of `Qwen3VLForConditionalGeneration` for a batch, padded on the left.

    Args:
        images: one `PIL.Image` for each text.

    Returns `input_ids`, `attention_mask` and `mm_token_type_ids` of shape `(batch, sequence)` (int64; token
    type 1 marks an image row), `pixel_values` of shape `(patches, channels * temporal * patch * patch)`
    (float32) and `image_grid_thw` of shape `(batch, 3)` (int64). Raises `OpSkipError` for an empty batch.
    """
    if not images:
        raise OpSkipError("a batch needs at least one question")
    pixels = processor.image_processor(list(images), return_tensors="pt")
    grid: Tensor = pixels["image_grid_thw"]
    visual = (grid.prod(-1) // processor.image_processor.merge_size**2).tolist()
    prompts = [encode_prompt(text, n, processor) for text, n in zip(texts, visual, strict=True)]
    length = max(map(len, prompts))
    input_ids = torch.full((len(prompts), length), processor.tokenizer.pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, length - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, length - len(prompt) :] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "mm_token_type_ids": (input_ids == processor.token_id(IMAGE_PAD)).to(torch.int64),
        "pixel_values": pixels["pixel_values"],
        "image_grid_thw": grid,
    }


def predict(logits: Tensor, processor: DemoProcessor) -> list[str]:
    """The answers that `logits` of shape `(batch, sequence, vocabulary)` give at their last row."""
    words: list[str] = processor.tokenizer.convert_ids_to_tokens(logits[:, -1].argmax(-1).tolist())
    return words
