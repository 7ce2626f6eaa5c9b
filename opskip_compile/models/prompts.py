"""Pictures and words through a processor of transformers: what a model is called with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from opskip_compile.errors import OptionError, in_one_line

_QWEN_IMAGE = "<|image_pad|>"
_QWEN_AROUND = ("<|vision_start|>", "<|vision_end|>")  # where Qwen's models expect an image


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
        tokens = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in tokens]

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
        inputs = _encoded(processor, images, texts)
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def _encoded(processor: Any, images: Sequence[Sequence[Any]], texts: Sequence[str]) -> Mapping[str, Any]:
    if getattr(processor, "chat_template", None):
        return by_chat_template(
            processor,
            [
                [{"role": "user", "content": [*({"type": "image", "image": i} for i in of_one), _text(words)]}]
                for of_one, words in zip(images, texts, strict=True)
            ],
        )
    # Gemma 3's processors put the image where its begin token stands
    begins = getattr(processor, "boi_token", None) if hasattr(processor, "full_image_sequence") else None
    token = begins or getattr(processor, "image_token", None) or "<image>"
    words = processor.tokenizer.get_vocab() if token == _QWEN_IMAGE else {}
    if all(around in words for around in _QWEN_AROUND):
        token = token.join(_QWEN_AROUND)
    prompts = ["\n".join([*[token] * len(of_one), text]) for of_one, text in zip(images, texts, strict=True)]
    inputs: Mapping[str, Any] = processor(
        text=prompts, images=[list(of_one) for of_one in images], return_tensors="pt", **_padding(texts)
    )
    return inputs


def refusal(processor: Any, error: Exception) -> str:
    """Why a processor refuses a prompt, in one line, and whether that may be for want of a chat template."""
    lacks = getattr(processor, "chat_template", "") is None  # of transformers, and not set
    return in_one_line(error) + ("; it has no chat template (chat_template.jinja)" if lacks else "")


def by_chat_template(processor: Any, chats: Sequence[Any]) -> Mapping[str, Any]:
    """What a processor makes of a batch of chats by its chat template; longer batches than one are padded."""
    inputs: Mapping[str, Any] = processor.apply_chat_template(
        list(chats),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",  # SmolVLM's would put its own default in the place of the one in processor_kwargs
        processor_kwargs={"return_tensors": "pt", **_padding(chats)},
    )
    return inputs


def _text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def _padding(batch: Sequence[Any]) -> dict[str, bool]:
    return {"padding": True} if len(batch) > 1 else {}


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
