"""Pictures from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opskip_compile.errors import OpSkipError, in_one_line
from opskip_compile.models.optional import require


def load_image(path: Path) -> Any:
    """An RGB `PIL.Image` read from `path`."""
    image_module = require("PIL.Image")
    try:
        with image_module.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise OpSkipError(f"cannot read the image {path}: {error}") from error


def open_image(path: Path) -> Any:
    """As `load_image`, for a file that a user names.

    Raises:
        OpSkipError: the file can't be read as one.
    """
    try:
        return load_image(path)
    except OpSkipError as error:
        raise OpSkipError(f"image: {error}") from error
    except Exception as error:  # decoders of broken files fail with more than OSError
        raise OpSkipError(f"image: cannot read {str(path)!r}: {in_one_line(error)}") from error
