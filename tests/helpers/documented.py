"""What the code of the pages runs with: a folder with models, a picture and prompts, and names that prose speaks of."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from opskip_compile.models import loading
from opskip_compile.models.packaged.model import MODEL_DIR
from opskip_compile.schedule.schedule import Schedule

SHORT_CALIBRATION = {"controls": False, "stability": False, "whole_front": False, "answer_tokens": 1, "refresh": 1}
SHORT_EVALUATION = {"cuts": (0.3,), "methods": ("late",), "lower": "eager", "rounds": 0, "answer_tokens": 1}
QUESTIONS = ("what color is the circle?", "what shape is in the image?", "is there a red shape?", "what is the shape?")


def make_model(folder: Path, layers: int) -> None:
    """The demo's Qwen3-VL with other depth, less wide, with random weights."""
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(MODEL_DIR)
    size = config.text_config
    size.num_hidden_layers, size.hidden_size, size.intermediate_size = layers, 64, 128
    config.vision_config.out_hidden_size = 64
    config.dtype = None
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = list(range(size.vocab_size))  # an answer has one token
    model.save_pretrained(folder)


def make_place(folder: Path, layers: int) -> Path:
    """A folder as the pages name one: ``path/to/model``, ``deep`` for presets of 36 layers, pictures and prompts."""
    from PIL import Image, ImageDraw

    make_model(folder / "path" / "to" / "model", layers)
    make_model(folder / "deep", 36)
    (folder / "opskip_compile" / "models" / "packaged").mkdir(parents=True)  # as in a clone
    (folder / "path" / "or").mkdir()
    (folder / "path" / "or" / "hub-id").symlink_to(folder / "path" / "to" / "model")
    pictures = folder / "path" / "to" / "pictures"
    pictures.mkdir()
    lines = []
    for i, question in enumerate(QUESTIONS * 2):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((4 * i, 8, 4 * i + 24, 40), fill=("red", "blue")[i % 2])
        picture.save(pictures / f"{i}.png")
        lines.append({"image": f"path/to/pictures/{i}.png", "prompt": question, "answer": "red"})
    shutil.copy(pictures / "0.png", folder / "picture.png")
    for name in ("prompts", "vqa", "charts", "questions"):
        text = "".join(json.dumps({**line, "task": name}) + "\n" for line in lines[:4])
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for name in ("other", "other_prompts"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[4:]), encoding="utf-8")
    Schedule.of("attend:1").save(folder / "schedule.json")
    return folder


def named_things(folder: Path, source: str) -> dict[str, Any]:
    """What the blocks take as given."""
    import opskip_compile as opskip

    model, processor = opskip.load(str(folder / source), device="cpu")
    samples = []
    for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        content = [{"type": "image", "path": str(folder / one["image"])}, {"type": "text", "text": one["prompt"]}]
        chat = [[{"role": "user", "content": content}]]
        given = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        samples.append(dict(processor.apply_chat_template(chat, **given)))
    things = {"opskip": opskip, "torch": torch, "model": model, "processor": processor, "samples": samples}
    return {**things, "inputs": samples[0], "LLM": check_engine_arguments}


def check_engine_arguments(model: str, additional_config: dict[str, Any]) -> None:
    """In the place of vLLM's ``LLM``, which has an environment of its own: what the plug-in makes of its settings."""
    assert set(additional_config) == {"opskip"} and set(additional_config["opskip"]) == {"schedule"}
    schedule = additional_config["opskip"]["schedule"]
    assert model and (schedule == "schedule.json" or Schedule.of(schedule))


def offline(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Names of the hub are the deep model, without torchvision; nothing is lowered by Inductor or takes long."""
    import transformers

    import opskip_compile as opskip
    from opskip_compile import _compat

    model, processor = loading.load(str(folder / "deep"), device="cpu")
    kinds = {"AutoModelForImageTextToText": model, "AutoProcessor": processor, "AutoConfig": model.config}
    for name, deep in kinds.items():
        kind = getattr(transformers, name)

        def load(source: Any, real: Any = kind.from_pretrained, deep: Any = deep, **how: Any) -> Any:
            return real(source, **how) if Path(source).exists() else deep

        monkeypatch.setattr(kind, "from_pretrained", load)
    monkeypatch.setattr(_compat, "inductor", lambda gm, inputs, options: gm.forward)
    calibrate = opskip.calibrate

    def short(*args: Any, **given: Any) -> Any:
        search = {"search": "joint", "shares": (0.25,)} if "levels" in given else {"search": "scores"}
        return calibrate(*args, **{**SHORT_CALIBRATION, **search, **given})

    monkeypatch.setattr(opskip, "calibrate", short)
    monkeypatch.setattr(opskip, "evaluate", partial(opskip.evaluate, **SHORT_EVALUATION))
