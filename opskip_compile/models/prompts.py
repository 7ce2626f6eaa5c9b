"""Pictures, sounds and words through a processor of transformers: what a model is called with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from opskip_compile.errors import OpSkipError, OptionError, in_one_line

_QWEN_IMAGE = "<|image_pad|>"
_QWEN_AROUND = ("<|vision_start|>", "<|vision_end|>")  # where Qwen's models expect an image


class Encoder:
    """Turns prompts with images or sounds into a batch that is padded on the left, and answers into token ids.

    Args:
        processor: of transformers, with a tokenizer and an image processor or one of audio.
    """

    def __init__(self, processor: Any) -> None:
        takes = hasattr(processor, "image_processor") or audio_part(processor) is not None
        if not takes or not hasattr(processor, "tokenizer"):
            raise OptionError(
                "processor: expected one of transformers for images or audio, and text, got a "
                f"{type(processor).__name__}"
            )
        self.processor = processor

    @property
    def sampling_rate(self) -> int | None:
        """Values a second of the sounds that the processor takes; None where it does not say."""
        rate = getattr(audio_part(self.processor), "sampling_rate", None)
        return rate if isinstance(rate, int) else None

    def check_takes(self, images: bool, sounds: bool) -> None:
        """Raises `OpSkipError` where a prompt has what the processor does not take; names the field."""
        name = type(self.processor).__name__
        if images and getattr(self.processor, "image_processor", None) is None:
            raise OpSkipError(f"image: the {name} takes none")
        if sounds and audio_part(self.processor) is None:
            raise OpSkipError(f"audio: the {name} takes none")

    @classmethod
    def of(cls, processor: Any) -> Encoder:
        """An encoder as it is, a processor of transformers in one."""
        return processor if isinstance(processor, Encoder) else cls(processor)

    def prompts(
        self, images: Sequence[Sequence[Any]], texts: Sequence[str], sounds: Sequence[Sequence[Any]] = ()
    ) -> dict[str, Tensor]:
        """Inputs of a batch, of one list of `PIL.Image`, one text and perhaps one list of sounds (float32 ``(values,)``
        of `numpy`, at the processor's rate) for each prompt."""
        return processed(self.processor, images, texts, sounds)

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer."""
        tokens = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in tokens]

    def text(self, tokens: Sequence[int]) -> str:
        """The words of an answer's token ids."""
        return str(self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def audio_part(processor: Any) -> Any:
    """The part of a processor that takes sounds; None if it has none."""
    parts = (getattr(processor, name, None) for name in ("feature_extractor", "audio_processor"))
    return next((part for part in parts if part is not None), None)


def processed(
    processor: Any, images: Sequence[Sequence[Any]], texts: Sequence[str], sounds: Sequence[Sequence[Any]] = ()
) -> dict[str, Tensor]:
    """Inputs of a batch of prompts, padded on the left.

    By the processor's chat template if it has one, else with the token of an image or a sound once for each of them
    before the words.

    Args:
        processor: of transformers.
        images: `PIL.Image` s of each prompt.
        texts: the words of each prompt.
        sounds: values of each prompt's sounds; empty if no prompt has any.
    """
    with _padded_left(processor):
        inputs = _encoded(processor, images, texts, sounds or [()] * len(texts))
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def _encoded(
    processor: Any, images: Sequence[Sequence[Any]], texts: Sequence[str], sounds: Sequence[Sequence[Any]]
) -> Mapping[str, Any]:
    if getattr(processor, "chat_template", None):
        return by_chat_template(
            processor,
            [
                [{"role": "user", "content": [*_parts("image", seen), *_parts("audio", heard), _text(words)]}]
                for seen, heard, words in zip(images, sounds, texts, strict=True)
            ],
        )
    # Gemma 3's processors put the image where its begin token stands
    begins = getattr(processor, "boi_token", None) if hasattr(processor, "full_image_sequence") else None
    token = begins or getattr(processor, "image_token", None) or "<image>"
    words = processor.tokenizer.get_vocab() if token == _QWEN_IMAGE else {}
    if all(around in words for around in _QWEN_AROUND):
        token = token.join(_QWEN_AROUND)
    prompts = [
        "\n".join([*[token] * len(seen), *[_audio_token(processor)] * len(heard), text])
        for seen, heard, text in zip(images, sounds, texts, strict=True)
    ]
    there: dict[str, Any] = {}
    if any(images) or not any(sounds):
        there["images"] = [list(seen) for seen in images]
    if any(sounds):
        there["audio"] = [sound for heard in sounds for sound in heard]
    inputs: Mapping[str, Any] = processor(text=prompts, return_tensors="pt", **there, **_padding(texts))
    return inputs


def _audio_token(processor: Any) -> str:
    parts = (getattr(processor, f"audio_{part}token", None) for part in ("bos_", "", "eos_"))
    return "".join(part for part in parts if isinstance(part, str)) or "<audio>"


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


def _parts(kind: str, values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    return ({"type": kind, kind: value} for value in values)


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
