"""``generate(compile_config=CompileConfig(backend="opskip"))``: transformers compiles decode steps with it, no prompt.

Such steps have no visual rows, so nothing is ever skipped. A user is told so when the first of them is compiled.
"""

from __future__ import annotations

import warnings
from weakref import WeakSet

from torch import nn

from opskip_compile import _compat
from opskip_compile.errors import NothingSkippedWarning

DECODE_ONLY = (
    "opskip: generate() compiles decode steps only with the backend of compile_config, and they have no image rows: "
    "nothing is skipped. Call opskip_compile.compile(model) once instead, and leave backend='opskip' out of "
    "compile_config"
)
_TOLD: WeakSet[nn.Module] = WeakSet()


def say_decode_only(backend: object) -> None:
    """Warn, once for each model, if the graph at hand is compiled for `generate` and its prompts are not."""
    model = _compat.generating_with(("opskip", backend))
    if model is None or model in _TOLD:
        return
    _TOLD.add(model)
    warnings.warn(DECODE_ONLY, NothingSkippedWarning, stacklevel=2)
