"""The call of a model that is compiled as a whole."""

from __future__ import annotations

from typing import Any

from torch import nn

from opskip_compile import _compat
from opskip_compile.attachment.compiled import Compiled
from opskip_compile.attachment.say import say_counted_in_part, say_not_compiled
from opskip_compile.attachment.step import is_traced_step


class CompiledCall:
    """What a model runs instead of its forward and its hooks, as ``model.compile`` has it. A copy has its own.

    Args:
        model: may be without its state yet, as while it is unpickled.
        options: of the backend.
        kwargs: of ``torch.compile``.
    """

    def __init__(self, model: nn.Module, options: dict[str, Any], kwargs: dict[str, Any]) -> None:
        self._model, self._options, self._kwargs = model, options, kwargs
        self._plain, self._under_modes = self._compile(False), self._compile(True)

    def _compile(self, under_modes: bool) -> Compiled:
        run = _compat.uncompiled_call(self._model)

        def call(*args: Any, **named: Any) -> Any:
            return run(*args, **named)

        return Compiled(call, self._options, self._kwargs, under_modes=under_modes)

    def run(self, *args: Any, **named: Any) -> Any:
        """The call. Whoever compiles around it runs it as it is, between two graphs."""
        if is_traced_step(args, named):
            return _compat.uncompiled_call(self._model)(*args, **named)
        return self._run(*args, **named)

    @_compat.never_traced
    def _run(self, *args: Any, **named: Any) -> Any:
        if _compat.is_dynamo_disabled():  # it would give the function up, for good
            say_not_compiled(self._model)
            return _compat.uncompiled_call(self._model)(*args, **named)
        under_modes = _compat.dispatch_modes_are_on()
        compiled = self._under_modes if under_modes else self._plain
        result, graphs = compiled(*args, **named)
        if not graphs and not self._options.get("dry_run"):
            say_not_compiled(self._model, compiled.function)
        elif under_modes and graphs > 1:
            say_counted_in_part(graphs)
        return result
