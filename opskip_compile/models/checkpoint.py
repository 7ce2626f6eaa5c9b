"""Configs and checkpoints of transformers from folders. No code in them is executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opskip_compile.errors import OpSkipError, in_one_line
from opskip_compile.models.optional import require

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


def load_checkpoint(folder: Path | str, hint: str = "", download: bool = False) -> tuple[Any, Any]:
    """The model in a folder, in evaluation mode and its own dtype, and its processor; no code in it is executed.

    Args:
        folder: of the model; with ``download`` also its name on a model hub. Else nothing is downloaded.
        hint: put behind messages.

    Raises:
        OpSkipError: one of them can't be loaded.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    how_to_load = {**_LOCAL, "local_files_only": not download}

    def load(what: str, loader: Callable[[], Any]) -> Any:
        try:
            with quiet_loading():
                return loader()
        except Exception as error:  # as above
            raise OpSkipError(
                f"model: no {what} could be loaded from {str(folder)!r} ({in_one_line(error)}){hint}"
            ) from error

    processor = load("processor", lambda: AutoProcessor.from_pretrained(folder, **how_to_load))
    if not hasattr(processor, "image_processor"):
        raise OpSkipError(f"model: {str(folder)!r} has no image processor{hint}")
    build = AutoModelForImageTextToText.from_pretrained
    model = load("weights", lambda: with_sdpa(lambda **how: build(folder, dtype="auto", **how_to_load, **how)))
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
