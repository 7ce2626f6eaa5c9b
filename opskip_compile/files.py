"""Write a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from opskip_compile.errors import OpSkipError


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write beside the target and rename: a reader sees the old file or the new one, never a part.

    Raises:
        OpSkipError: the file can't be written.
    """
    target = Path(path)
    data = content.encode() if isinstance(content, str) else content
    part = target.with_name(f".opskip-{secrets.token_hex(8)}.tmp")
    try:
        part.write_bytes(data)
        os.replace(part, target)
    except OSError as error:
        raise OpSkipError(f"{target}: can't be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
