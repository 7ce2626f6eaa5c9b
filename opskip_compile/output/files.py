"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from opskip_compile.errors import OpSkipError


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write beside the target and rename: a reader sees the old file or the new one, never a part.

    Raises:
        OpSkipError: the file can't be written.
    """
    data = content.encode() if isinstance(content, str) else content
    part: Path | None = None
    try:
        target = Path(path)
        part = target.with_name(f".opskip-{secrets.token_hex(8)}.tmp")
        part.write_bytes(data)
        os.replace(part, target)
    except (OSError, TypeError, ValueError) as error:  # no path at all, or one that no file can have
        why = getattr(error, "strerror", None) or error
        raise OpSkipError(f"{path}: can't be written: {why}") from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError, ValueError):
                part.unlink(missing_ok=True)
