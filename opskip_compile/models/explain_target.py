"""From the name that a user gives to a model and the inputs of one prefill, ready for `opskip_compile.explain`.

A name is the packaged demo model, a tiny model with random weights, or a transformers model folder. Of a folder only
the config is needed: the decoder is then built on the meta device, which takes no memory, so that the graph of a large
checkpoint can be looked at on a laptop. Nothing is downloaded, and no code of a model folder is executed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile.errors import OpSkipError, OptionError, in_one_line
from opskip_compile.models import tiny
from opskip_compile.models.checkpoint import (
    IMAGE_TOKENS,
    load_checkpoint,
    nothing_visual,
    quiet_loading,
    read_config,
    reads_images,
    with_sdpa,
)
from opskip_compile.models.images import Source, load_image, open_image
from opskip_compile.models.packaged import model as packaged
from opskip_compile.models.prompts import processed, refusal
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.schedule.modalities import VISUAL, tokens_by_modality
from opskip_compile.schedule.schedule import Schedule

TINY = {
    "tiny-qwen3-vl": "qwen3_vl",
    "tiny-qwen2.5-vl": "qwen2_5_vl",
    "tiny-llava": "llava",
    "tiny-internvl": "internvl",
}
NAMES = (packaged.NAME, *TINY)
PROMPT = "what is the color of the shape?"
MOST_ROWS = 1_000_000
Step = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for; None where nothing was said.

    Attributes:
        model: one of `NAMES`, a folder of a transformers model, or its config.json.
        image, prompt: what the model is asked, where it reads images and text: a file, a URL or a data URI, and words.
        layers: decoder layers of a tiny model.
        text_before, visual, text: rows of the prompt in this order, where only a config is read.
        modalities: whose rows the schedule means; the config has to name their token, unless ``visual`` is given.
    """

    model: str
    image: Source | None = None
    prompt: str | None = None
    layers: int | None = None
    text_before: int | None = None
    visual: int | None = None
    text: int | None = None
    modalities: tuple[str, ...] = VISUAL


@dataclass(frozen=True)
class Target:
    """A model with the keyword inputs of one prefill.

    Attributes:
        about: the model in one line.
        schedule, origin: what to skip if the user names nothing, and where that came from; None leaves the choice to
            the backend.
    """

    model: nn.Module
    inputs: dict[str, Any]
    about: str
    schedule: Schedule | None = None
    origin: str = ""


class MarkedDecoder(nn.Module):
    """A text decoder of transformers called with embeddings of which some rows are named as visual."""

    def __init__(self, decoder: nn.Module, config: Any) -> None:
        super().__init__()
        self.decoder, self.config = decoder, config

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Last hidden state ``(batch, sequence, width)``, of ``hidden`` like it and ``mask`` ``(batch, sequence)``."""
        out = self.decoder(inputs_embeds=mark_visual(hidden, mask), use_cache=False)
        hidden_states: Tensor = out.last_hidden_state
        return hidden_states


def find(request: Request, step: Step = lambda what: None) -> Target:
    """The model that ``request`` names, with inputs.

    ``step`` is called with what is done now.

    Raises:
        OpSkipError: an unknown name, a field that this kind of model does not take, or files that can't be read.
    """
    path = Path(request.model)
    if request.model == packaged.NAME:
        _refuse(request, "the demo model", "layers", "text_before", "visual", "text")
        step("loading the demo model")
        return _packaged(request)
    if request.model in TINY:
        _refuse(request, "a tiny model", "prompt", "text_before", "visual", "text")
        step("building the model")
        return _tiny(tiny.FAMILIES[TINY[request.model]], request)
    if not path.exists():
        (nearest,) = difflib.get_close_matches(request.model, NAMES, n=1, cutoff=0)
        raise OpSkipError(
            f"model: there is no {request.model!r}; the nearest known name is {nearest!r}, "
            "and a folder of a transformers model is possible too"
        )
    step("reading the config")
    config = read_config(path, "model")
    named = request.image is None and not {*request.modalities}.isdisjoint(tokens_by_modality(config))
    if request.visual is None and not reads_images(config) and not named:
        advice = "" if request.image is not None else " (--visual N shows its decoder as if N rows were visual)"
        raise OpSkipError(f"model: {nothing_visual(config)}{advice}")
    if request.image is None:
        _refuse(request, "a folder", "layers")
        _refuse(request, "a folder without --image", "prompt")
        step("building the decoder")
        return _decoder_alone(config, request)
    _refuse(request, "a folder", "layers")
    _refuse(request, "a folder with --image", "text_before", "visual", "text")
    image = open_image(request.image)
    step("loading the checkpoint")
    folder = path if path.is_dir() else path.parent
    return _checkpoint(folder, config, image, _prompt(request))


def _packaged(request: Request) -> Target:
    if request.image is None:
        raise OptionError("image: needed for the demo model")
    open_image(request.image)
    prompt = _prompt(request)
    processor, model = packaged.load_processor(), packaged.load_model()
    return Target(
        model,
        packaged.encode([load_image(request.image)], [prompt], processor),
        f"the demo model, asked {prompt!r}",
        Schedule.load(packaged.SCHEDULE_FILE),
        "packaged with the demo",
    )


def _tiny(family: tiny.Family, request: Request) -> Target:
    picture = None if request.image is None else tiny.pixels(open_image(request.image), family.side)
    model = family.build(4 if request.layers is None else request.layers)
    return Target(model, dict(family.inputs(picture=picture)), f"{family.model}, small and with random weights")


def _decoder_alone(config: Any, request: Request) -> Target:
    """The decoder that ``config`` describes, without weights, called with rows of nothing."""
    before = _rows(request.text_before, "text-before", 0, least=0)
    visual = _rows(request.visual, "visual", 1024, least=1)
    after = _rows(request.text, "text", 64, least=1)
    name = type(config).__name__
    try:
        text = config.get_text_config(decoder=True)
        width = int(text.hidden_size)
        with torch.device("meta"), quiet_loading():
            decoder = with_sdpa(lambda **how: _build_decoder(config, text, how))
    except Exception as error:  # as above: a model class may fail with anything
        raise OpSkipError(f"model: no text decoder can be built from {name}: {in_one_line(error)}") from error
    hidden = torch.empty(1, before + visual + after, width, device="meta", dtype=decoder.dtype)
    mask = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    mask[:, before : before + visual] = True
    about = f"the decoder of {name} ({type(decoder).__name__}), without weights"
    return Target(MarkedDecoder(decoder.eval(), config), {"hidden": hidden, "mask": mask}, about)


def _build_decoder(config: Any, text: Any, how: Mapping[str, Any]) -> Any:
    """The decoder by its own config, or as a part of the whole model where transformers builds it only there."""
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_MAPPING,
        AutoModel,
        AutoModelForImageTextToText,
    )

    if type(text) in MODEL_MAPPING:
        return AutoModel.from_config(text, trust_remote_code=False, **how)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise OpSkipError("transformers has no model of images and text for it")
    return AutoModelForImageTextToText.from_config(config, trust_remote_code=False, **how).get_decoder()


def _checkpoint(folder: Path, config: Any, image: Any, prompt: str) -> Target:
    """A whole model with its weights, asked about an image in the words of its own processor."""
    model, processor = load_checkpoint(folder, "; without --image the config is enough")
    try:
        inputs = processed(processor, [[image]], [prompt])
    except Exception as error:  # as above
        raise OpSkipError(
            f"model: the processor in {str(folder)!r} refuses image and prompt: {refusal(processor, error)}"
        ) from error
    tokens = [getattr(config, field, None) for field in IMAGE_TOKENS]
    advice = "" if getattr(processor, "chat_template", None) else ": it has no chat template (chat_template.jinja)"
    if not any(bool((inputs["input_ids"] == token).any()) for token in tokens if token is not None):
        raise OpSkipError(f"model: the processor in {str(folder)!r} made a prompt without visual rows{advice}")
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    return Target(model, inputs, f"{type(model).__name__}, asked {prompt!r}")


def _prompt(request: Request) -> str:
    text = PROMPT if request.prompt is None else request.prompt
    if not text.strip():
        raise OptionError("prompt: expected some text")
    return text


def _rows(value: int | None, field: str, default: int, least: int) -> int:
    if value is None:
        return default
    if not least <= value <= MOST_ROWS:
        raise OptionError(f"{field}: expected {least} to {MOST_ROWS} rows, got {value}")
    return value


def _refuse(request: Request, what: str, *fields: str) -> None:
    for field in fields:
        if getattr(request, field) is not None:
            raise OptionError(f"{field.replace('_', '-')}: not for {what}")
