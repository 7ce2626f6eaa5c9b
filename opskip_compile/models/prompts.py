"""Pictures and words through a processor of transformers: what a model is called with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from opskip_compile.demo import data
from opskip_compile.errors import OpSkipError, OptionError


class Encoder:
    """Turns prompts with images into a batch that is padded on the left, and answers into token ids.

    Args:
        processor: of transformers, with a tokenizer and an image processor.
    """

    def __init__(self, processor: Any) -> None:
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            raise OptionError(
                f"processor: expected one of transformers for images and text, got a {type(processor).__name__}"
            )
        self.processor = processor

    @classmethod
    def of(cls, processor: Any) -> Encoder:
        """An encoder as it is, a processor of transformers in one."""
        return processor if isinstance(processor, Encoder) else cls(processor)

    def prompts(self, images: Sequence[Sequence[Any]], texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of a batch, of one list of `PIL.Image` and one text for each prompt."""
        return processed(self.processor, images, texts)

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer."""
        found = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in found]

    def text(self, tokens: Sequence[int]) -> str:
        """The words of an answer's token ids."""
        return str(self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def processed(processor: Any, images: Sequence[Sequence[Any]], texts: Sequence[str]) -> dict[str, Tensor]:
    """Inputs of a batch of prompts, padded on the left.

    By the processor's chat template if it has one, else with the image token once for each picture before the words.

    Args:
        processor: of transformers.
        images: `PIL.Image` s of each prompt.
        texts: the words of each prompt.
    """
    with _padded_left(processor):
        found = _encoded(processor, images, texts)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _encoded(processor: Any, images: Sequence[Sequence[Any]], texts: Sequence[str]) -> Mapping[str, Any]:
    padding = {"padding": True} if len(texts) > 1 else {}
    if getattr(processor, "chat_template", None):
        chats = [
            [{"role": "user", "content": [*({"type": "image", "image": i} for i in own), {"type": "text", "text": t}]}]
            for own, t in zip(images, texts, strict=True)
        ]
        chat: Mapping[str, Any] = processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", **padding},
        )
        return chat
    # Gemma's processors put the image where its begin token stands
    token = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None) or "<image>"
    prompts = ["\n".join([*[token] * len(own), text]) for own, text in zip(images, texts, strict=True)]
    found: Mapping[str, Any] = processor(
        text=prompts, images=[list(own) for own in images], return_tensors="pt", **padding
    )
    return found


@contextmanager
def _padded_left(processor: Any) -> Iterator[None]:
    """Answers come behind the prompts."""
    tokenizer = getattr(processor, "tokenizer", None)
    side = getattr(tokenizer, "padding_side", None)
    if tokenizer is not None:
        tokenizer.padding_side = "left"
    try:
        yield
    finally:
        if tokenizer is not None:
            tokenizer.padding_side = side


def open_image(path: Path) -> Any:
    """An RGB `PIL.Image`.

    Raises:
        OpSkipError: the file can't be read as one.
    """
    try:
        return data.load_image(path)
    except OpSkipError as error:
        raise OpSkipError(f"image: {error}") from error
    except Exception as error:  # decoders of broken files fail with more than OSError
        text = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise OpSkipError(f"image: cannot read {str(path)!r}: {text}") from error
