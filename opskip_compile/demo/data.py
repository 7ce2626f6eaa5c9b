"""The easy-VQA splits as model inputs: questions, prompts, pixels, predictions and the two scores.

A prompt is the image block followed by the words of one question, and the answer is the one token that the
last row predicts. The demo command and the training recipe share this module, so both see the same inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from opskip_compile.errors import OpSkipError

MODEL_DIR = Path(__file__).parent / "model"
IMAGE_PAD = "<|image_pad|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
INSTALL_HINT = 'install the demo with: pip install "opskip-compile[demo]"'

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image; `answer` is a single lower-case word."""

    image_id: int
    image_path: Path
    text: str
    answer: str


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


def load_questions(split: Split) -> list[Question]:
    """All questions of a split, in the order of the package: 38,575 for train and 9,673 for test."""
    if split not in ("train", "test"):
        raise OpSkipError(f"easy-VQA has the splits 'train' and 'test', not {split!r}")
    package = _require("easy_vqa")
    try:
        texts, answers, image_ids = getattr(package, f"get_{split}_questions")()
        paths = getattr(package, f"get_{split}_image_paths")()
        questions = [
            Question(int(image_id), Path(paths[image_id]), str(text), str(answer))
            for text, answer, image_id in zip(texts, answers, image_ids, strict=True)
        ]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise OpSkipError(f"the installed easy_vqa package is incomplete ({error!r}); re{INSTALL_HINT}") from error
    if not questions:
        raise OpSkipError(f"the installed easy_vqa package has no {split} questions; re{INSTALL_HINT}")
    return questions


def load_processor(folder: Path = MODEL_DIR) -> DemoProcessor:
    """Tokenizer and image processor from a saved model folder. Needs no torchvision and no network."""
    transformers = _require("transformers")
    try:
        return DemoProcessor(
            transformers.PreTrainedTokenizerFast.from_pretrained(folder),
            transformers.Qwen2VLImageProcessorPil.from_pretrained(folder),
        )
    except (AttributeError, OSError, ValueError) as error:
        raise OpSkipError(f"{folder} is not a demo model folder ({error}); {INSTALL_HINT}") from error


def load_model(folder: Path = MODEL_DIR, dtype: torch.dtype = torch.float32) -> Any:
    """The demo model, a `Qwen3VLForConditionalGeneration` in evaluation mode."""
    transformers = _require("transformers")
    try:
        with quiet_loading():
            return transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    except (AttributeError, OSError, ValueError) as error:
        raise OpSkipError(f"{folder} is not a demo model folder ({error}); {INSTALL_HINT}") from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the bar that transformers draws while it reads weights."""
    logging = _require("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_image(path: Path) -> Any:
    """An RGB `PIL.Image` read from `path`."""
    image_module = _require("PIL.Image")
    try:
        with image_module.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise OpSkipError(f"cannot read the image {path}: {error}") from error


def encode_prompt(text: str, visual_tokens: int, processor: DemoProcessor) -> list[int]:
    """Token ids of a prompt: vision start, `visual_tokens` placeholders, vision end, the question's words."""
    start, pad, end = (processor.token_id(token) for token in (VISION_START, IMAGE_PAD, VISION_END))
    words: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not words:
        raise OpSkipError("the question is empty")
    return [start, *([pad] * visual_tokens), end, *words]


def collate(questions: Sequence[Question], processor: DemoProcessor) -> dict[str, Tensor]:
    """As `encode`, of questions whose images are read from their files."""
    return encode([load_image(q.image_path) for q in questions], [q.text for q in questions], processor)


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


def batches(
    questions: Sequence[Question], processor: DemoProcessor, size: int
) -> Iterator[tuple[Sequence[Question], dict[str, Tensor]]]:
    """Consecutive batches of at most `size` questions, each with its collated inputs."""
    if size < 1:
        raise OpSkipError(f"the batch size must be positive, not {size}")
    for start in range(0, len(questions), size):
        part = questions[start : start + size]
        yield part, collate(part, processor)


def predict(logits: Tensor, processor: DemoProcessor) -> list[str]:
    """The answers that `logits` of shape `(batch, sequence, vocabulary)` give at their last row."""
    words: list[str] = processor.tokenizer.convert_ids_to_tokens(logits[:, -1].argmax(-1).tolist())
    return words


def accuracy(predictions: Sequence[str], questions: Sequence[Question]) -> float:
    """Share of `predictions` that equal the answers of `questions`."""
    return agreement(predictions, [question.answer for question in questions])


def agreement(first: Sequence[str], second: Sequence[str]) -> float:
    """Share of positions at which two lists of answers are equal; both need the same, positive length."""
    if len(first) != len(second) or not first:
        raise OpSkipError(f"cannot compare {len(first)} answers with {len(second)}")
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def _require(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise OpSkipError(f"the demo needs {module.partition('.')[0]}: {INSTALL_HINT}") from error
