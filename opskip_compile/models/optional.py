"""Packages that not every installation has: imported where they are needed, or a line that says what to install."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from opskip_compile.errors import OpSkipError

INSTALL_HINT = 'install the demo with: pip install "opskip-compile[demo]"'


def require(module: str) -> Any:
    """The module. Raises `OpSkipError` where its package is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise OpSkipError(f"the demo needs {module.partition('.')[0]}: {INSTALL_HINT}") from error
