"""`opskip_compile.load`: a model and what turns a chat with a picture into its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("PIL")

import opskip_compile as opskip
from opskip_compile.models.packaged.model import MODEL_DIR, encode, load_processor


def chat(picture: Any, words: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": words}]}]


def drawn(color: str) -> Any:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill=color)
    return picture


@pytest.mark.parametrize("source", ["demo", str(MODEL_DIR)])
def test_a_chat_is_what_the_model_was_trained_on(source: str) -> None:
    """By the chat template and processor that come with it: the rows that the recipe's own encoding has."""
    model, processor = opskip.load(source, device="cpu", dtype="float32")
    pictures, words = [drawn("red"), drawn("blue")], ["what color is the circle?", "is there a blue shape?"]
    chats = [chat(*one) for one in zip(pictures, words, strict=True)]
    given = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chats, processor_kwargs={"padding": True}, **given)
    for name, wanted in encode(pictures, words, load_processor()).items():
        assert torch.equal(inputs[name], wanted), name
    answers = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1:]
    assert [text.strip() for text in processor.batch_decode(answers)] == ["red", "yes"]


def test_dtypes() -> None:
    assert opskip.load(device="cpu")[0].dtype == torch.float32  # the file is in 16 bits, in which a CPU is slow
    assert opskip.load(str(MODEL_DIR), device="cpu")[0].dtype == torch.float16
    assert opskip.load("demo", device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16


def test_what_can_not_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(opskip.OpSkipError, match="model: there is no file"):
        opskip.load(str(tmp_path))
    with pytest.raises(opskip.OptionError, match="dtype: expected one of"):
        opskip.load("demo", device="cpu", dtype="int8")
