"""Pictures from files, from the web and from data URIs: what a line of a file or an option names as its image."""

from __future__ import annotations

import io
import os
import threading
import warnings
from pathlib import Path
from typing import Any

from opskip_compile.errors import OpSkipError, in_one_line
from opskip_compile.models.downloads import downloaded, embedded, is_data, is_uri, is_web, without_payload
from opskip_compile.models.optional import require

Source = str | os.PathLike[str]
_FILTERS = threading.Lock()  # two threads that change the filters of warnings would leave them changed


def load_image(source: Source) -> Any:
    """An RGB `PIL.Image` of a file, an http(s) URL or a data URI.

    The first frame of an animation; upright where the camera says how it was held; the high byte of 16-bit greys. What
    is transparent is shown as the colours below it.

    Raises:
        OpSkipError: it can't be read, has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``, or no 8 or 16 bits a colour.
    """
    pil = require("PIL.Image")
    shown = without_payload(source)
    try:
        with _open(pil, stored(source)) as image:
            return _rgb(image, shown)
    except (pil.DecompressionBombWarning, pil.DecompressionBombError) as error:
        raise OpSkipError(
            f"cannot read the image {shown}: it has more than {pil.MAX_IMAGE_PIXELS:,} pixels "
            "(PIL.Image.MAX_IMAGE_PIXELS); models see a smaller copy anyway: save it smaller"
        ) from error
    except pil.UnidentifiedImageError as error:
        raise OpSkipError(f"cannot read the image {shown}: cannot identify image file") from error
    except OSError as error:
        raise OpSkipError(f"cannot read the image {shown}: {error.strerror or in_one_line(error)}") from error


def open_image(source: Source) -> Any:
    """As `load_image`, for an image that a user names.

    Raises:
        OpSkipError: it can't be read as one.
    """
    try:
        return load_image(source)
    except OpSkipError as error:
        raise OpSkipError(f"image: {error}") from error
    except Exception as error:  # decoders of broken files fail with more than OSError
        raise OpSkipError(f"image: cannot read {without_payload(source)!r}: {in_one_line(error)}") from error


def content_of(source: Source) -> bytes:
    """What is in the file, as it is stored. Raises `OpSkipError` where it can't be read or downloaded."""
    file = stored(source)
    try:
        return file.read_bytes() if isinstance(file, Path) else file.getvalue()
    except OSError as error:
        raise OpSkipError(f"cannot read {without_payload(source)}: {error.strerror or error}") from error


def check_source(source: str, folder: Path) -> str | Path:
    """An image or a sound as a line of a file in ``folder`` names it: a URI as it is, a path seen from the folder.

    Nothing is downloaded yet.

    Raises:
        OpSkipError: there is no such file, a data URI that can't be decoded, or a scheme that is not read.
    """
    if is_data(source):
        embedded(source)
    elif is_uri(source) and not is_web(source):
        raise OpSkipError(f"cannot read {source!r}: only files, http, https and data URIs are read")
    if is_uri(source):
        return source
    path = folder / source
    try:
        if path.is_dir():
            raise OpSkipError(f"{str(path)!r} is a folder")
        if path.is_file():
            return path
    except OSError as error:  # base64 without its "data:", for one, is too long for a name
        raise OpSkipError(f"no path, URL or data URI: {source[:40]!r}...: {error.strerror}") from error
    raise OpSkipError(f"there is no file {str(path)!r}")


def _open(pil: Any, file: Path | io.BytesIO) -> Any:
    """Pillow only warns up to twice its limit; a batch of such pictures would fill the memory."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("error", pil.DecompressionBombWarning)
        return pil.open(file)


def stored(source: Source) -> Path | io.BytesIO:
    """A file, or what a data URI holds; of a URL a file of this process. Raises `OpSkipError`."""
    text = os.fspath(source)
    if is_data(text):
        return io.BytesIO(embedded(text))
    if is_web(text):
        return downloaded(text)
    if is_uri(text):
        raise OpSkipError(f"cannot read {text!r}: only files, http, https and data URIs are read")
    return Path(text)


def _rgb(image: Any, shown: str) -> Any:
    turned = require("PIL.ImageOps").exif_transpose(image)
    mode = turned.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        # conversion alone would cut every value off at 255, which leaves a white picture
        return turned.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if mode in ("I", "F"):
        raise OpSkipError(f"cannot read the image {shown}: its values have no fixed range (mode {mode}): save 8 bits")
    if mode == "P" and "transparency" in turned.info:
        turned = turned.convert("RGBA")  # Pillow warns of the direct way
    return turned.convert("RGB")
