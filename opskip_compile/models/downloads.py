"""Images and sounds that are named by a URI: downloaded once for a process, or decoded from the URI itself."""

from __future__ import annotations

import base64
import binascii
import functools
import http.client
import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from opskip_compile.errors import OpSkipError, in_one_line

MOST_BYTES = 64 << 20  # of one image
PATIENCE = 10.0  # seconds that a server may be silent
DEADLINE = 60.0  # seconds for one image in all
_CHUNK = 1 << 16
_IN_URLS = "%/:=&?~#+!$,;'@()*[]"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # of two letters at least: C:\image.png is a path


def is_uri(source: str) -> bool:
    """Whether a scheme stands in front."""
    scheme = _SCHEME.match(source)
    return scheme is not None and (source.startswith("//", scheme.end()) or is_data(source))


def is_web(source: str) -> bool:
    """An http or https URL."""
    return source.lower().startswith(("http://", "https://"))


def is_data(source: str) -> bool:
    """A data URI."""
    return source[:5].lower() == "data:"


def without_payload(source: str | os.PathLike[str]) -> str:
    """A source for a message: paths and URLs whole, of data URIs the beginning."""
    text = os.fspath(source)
    return f"{text[:40]}... ({len(text)} characters)" if is_data(text) and len(text) > 60 else text


def embedded(uri: str) -> bytes:
    """What a data URI holds.

    Raises:
        OpSkipError: it is not one, or not what its base64 says.
    """
    head, comma, body = uri.partition(",")
    if not comma:
        raise OpSkipError(f"cannot read {without_payload(uri)!r}: a data URI has a comma before its content")
    content = urllib.parse.unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error as error:
        raise OpSkipError(f"cannot read {without_payload(uri)!r}: not base64: {error}") from error


def downloaded(url: str) -> Path:
    """A file with what the URL holds. The same URL is asked for once in a process; the file goes with it.

    Raises:
        OpSkipError: names the URL: it can't be reached, or takes too long, or holds more than `MOST_BYTES`.
    """
    files = _folder_of_this_process(os.getpid())
    known = files.paths.get(url)
    if known is None:
        content = _content(url)
        handle, name = tempfile.mkstemp(dir=files.folder.name)
        with open(handle, "wb") as file:
            file.write(content)
        known = files.paths[url] = Path(name)
    return known


class _Files:
    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="opskip-images-")
        self.paths: dict[str, Path] = {}


@functools.cache
def _folder_of_this_process(process: int) -> _Files:
    """A forked process starts with a folder of its own: that of its parent goes with the parent."""
    return _Files()


def _content(url: str) -> bytes:
    quoted = urllib.parse.quote(url, safe=_IN_URLS)  # letters beyond ASCII and blanks, as browsers take them
    end = time.monotonic() + DEADLINE
    parts: list[bytes] = []
    size = 0
    try:
        request = urllib.request.Request(quoted, headers={"User-Agent": "opskip-compile"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            while part := answer.read1(_CHUNK):  # what is there: a trickle must not outlive the deadline
                parts.append(part)
                size += len(part)
                if size > MOST_BYTES:
                    raise OpSkipError(f"cannot download {url!r}: more than {MOST_BYTES >> 20} MiB")
                if time.monotonic() > end:
                    raise OpSkipError(f"cannot download {url!r}: not there after {DEADLINE:.0f} s")
            if answer.length:
                raise OpSkipError(f"cannot download {url!r}: cut off, {answer.length} bytes are missing")
    except urllib.error.HTTPError as error:
        raise OpSkipError(f"cannot download {url!r}: the server says {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None)
        why = in_one_line(reason if isinstance(reason, Exception) else error)
        raise OpSkipError(f"cannot download {url!r}: {why}") from error
    return b"".join(parts)
