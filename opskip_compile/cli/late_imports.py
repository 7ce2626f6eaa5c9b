"""Packages that a command loads only if it comes to need them.

transformers imports torchao together with its models wherever that is installed, whatever the model is; and torchao
prints which of its libraries could not be loaded, and warnings about itself. A reader of `opskip demo` can act on none.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

IMPORTED_WITH_EVERY_MODEL = "torchao.prototype.safetensors.safetensors_support"
"""All that transformers takes of torchao before it meets a quantised checkpoint: two functions that store weights."""


class _LateModule(ModuleType):
    """Stands in the place of a module of functions; the first call of one of them loads the module."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} before it is loaded")

        def load_and_call(*args: Any, **kwargs: Any) -> Any:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return load_and_call


def import_torchao_late() -> None:
    """Let models be imported without torchao; a checkpoint that torchao has quantised loads it as ever."""
    sys.modules.setdefault(IMPORTED_WITH_EVERY_MODEL, _LateModule(IMPORTED_WITH_EVERY_MODEL))
