"""Configs and checkpoints of transformers from folders. No code in them is executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opskip_compile.errors import OpSkipError, in_one_line
from opskip_compile.models.folders import missing_weights
from opskip_compile.models.optional import require
from opskip_compile.models.processors import load_processor
from opskip_compile.schedule.modalities import tokens_by_modality

IMAGE_TOKENS = ("image_token_id", "image_token_index")  # fields of a config
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def read_config(path: Path, field: str = "config") -> Any:
    """The transformers config in a folder or a JSON file; nothing is downloaded or executed.

    Raises:
        OpSkipError: there is no such file, or transformers does not know what is in it. Names ``field``.
    """
    from transformers import AutoConfig

    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise OpSkipError(f"{field}: there is no file {str(file)!r}")
    try:
        return AutoConfig.from_pretrained(file, **_LOCAL)
    except Exception as error:  # a config class may fail with anything on a file that it does not expect
        raise OpSkipError(f"{field}: {str(file)!r} is no transformers config: {in_one_line(error)}") from error


def reads_images(config: Any) -> bool:
    """Whether a config describes a model of images, which then has visual rows."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    fields = ("vision_config", *IMAGE_TOKENS)
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or any(getattr(config, f, None) for f in fields)


def nothing_visual(config: Any) -> str:
    """What is said of a config that `reads_images` is false of."""
    has = "audio" in tokens_by_modality(config)
    more = "; it has rows of audio, which a schedule means with modalities=audio" if has else ""
    return f"{type(config).__name__} is no model of text and images: it has no visual rows to skip{more}"


def auto_class(config: Any) -> Any:
    """The class of transformers that builds the whole model of a config: of images and text, or of audio and text."""
    import transformers

    kinds = (
        (transformers.AutoModelForMultimodalLM, transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING),
        (transformers.AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    )
    if not reads_images(config):
        for kind, mapping in kinds:
            if type(config) in mapping:
                return kind
    return transformers.AutoModelForImageTextToText


def load_checkpoint(folder: Path, hint: str = "") -> tuple[Any, Any]:
    """The model in a folder, in evaluation mode and its own dtype, and its processor; no code in it is executed.

    Args:
        hint: put behind messages.

    Raises:
        OpSkipError: one of them can't be loaded; names the file that is missing.
    """
    try:
        config = read_config(folder, "model")
        if not reads_images(config) and "audio" not in tokens_by_modality(config):
            raise OpSkipError(f"model: {nothing_visual(config)}")
        build = auto_class(config).from_pretrained
        with quiet_loading():
            processor = load_processor(folder, config)
            try:
                model = with_sdpa(lambda **how: build(folder, dtype="auto", **_LOCAL, **how))
            except Exception as error:  # as above
                other = f"no weights could be loaded from {str(folder)!r}: {in_one_line(error)}"
                raise OpSkipError(f"model: {missing_weights(folder) or other}") from error
    except OpSkipError as error:
        raise OpSkipError(f"{error}{hint}") from error.__cause__
    return model.eval(), processor


def with_sdpa(build: Callable[..., Any]) -> Any:
    """Build a model with the attention of torch, whatever its config asks for; with its plain one if it lacks that."""
    try:
        return build(attn_implementation="sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return build(attn_implementation="eager")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the bar that transformers draws while it reads weights."""
    logging = require("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
