"""Dynamo: its registry, callbacks, limits and counters, and what it reads off modules and tensors."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import nn
from torch._logging._internal import trace_structured

from opskip_compile._compat.patches import Patch, torch_is_older_than

_REGISTERING = threading.Lock()
_IGNORED: set[Callable[..., Any]] = set()
_WRAPPED = "opskip"  # attribute of our start callback: what it calls


def register_backend(name: str, backend: Callable[..., Any]) -> None:
    """Let ``torch.compile(backend=name)`` find ``backend``; may be called again, and by several threads at once.

    For an entry point that gives None: Dynamo registers whatever else it gives, and fails where two threads load it. Of
    None, its ``register_backend`` makes a decorator, and the lookup goes on with what stands in the registry.
    """
    from torch._dynamo.backends import registry

    with _REGISTERING:
        if name not in registry._COMPILER_FNS:
            registry.register_backend(backend, name)


def forget_backend(name: str) -> None:
    """Let the next ``torch.compile(backend=name)`` load the backend's entry point again, as the first one did."""
    from torch._dynamo.backends import registry

    for entry_point in entry_points(group="torch_dynamo_backends", name=name):
        registry._COMPILER_FNS.pop(name, None)
        registry._BACKENDS[name] = entry_point  # Dynamo drops it when it has loaded it


def on_compile_start(callback: Callable[[], None]) -> None:
    """Run ``callback`` whenever Dynamo starts to compile, until ``torch._dynamo.reset`` forgets it."""
    from torch._dynamo.callback import callback_handler

    if not any(getattr(known, _WRAPPED, None) is callback for known in callback_handler.start_callbacks):

        def start(args: object) -> None:
            callback()

        setattr(start, _WRAPPED, callback)
        callback_handler.register_start_callback(start)


def not_on_compile_start(callback: Callable[[], None]) -> None:
    """Take back `on_compile_start`."""
    from torch._dynamo.callback import callback_handler

    for known in list(callback_handler.start_callbacks):
        if getattr(known, _WRAPPED, None) is callback:
            callback_handler.remove_start_callback(known)


def _utils_of_dynamo() -> tuple[dict[str, Any], str]:
    from torch._dynamo import utils

    return vars(utils), "_get_dynamo_config_for_logging"


_config_in_logs = Patch(_utils_of_dynamo, lambda _: lambda: None, needed=torch_is_older_than(2, 13))
"""Dynamo of torch 2.11 writes its settings into the log of each compile as JSON, and prints an error if they hold a
function, as `ignore_logging_functions` is for: they are left out there."""


def ignore_log_lines(ignore: bool = True) -> None:
    """Let Dynamo leave out transformers' log lines that are said once, where it would end the graph; or let it not.

    Such a line stands in the attention (``output_attentions`` that the kernel can't give), and parts every layer.
    """
    for name in ("warning_once", "info_once"):  # transformers puts them on the class
        method = getattr(logging.Logger, name, None)
        ignored = torch._dynamo.config.ignore_logging_functions
        if method is not None and ignore and method not in ignored:
            _IGNORED.add(method)
            ignored.add(method)
    (_config_in_logs.apply if ignore else _config_in_logs.revert)()
    if not ignore:
        torch._dynamo.config.ignore_logging_functions.difference_update(_IGNORED)
        _IGNORED.clear()


def recompile_reason() -> str:
    """Why Dynamo compiles the present frame again (its first failed guard); empty for the first time."""
    from torch._dynamo.utils import get_metrics_context

    reason = get_metrics_context()._metrics.get("recompile_reason")
    return str(reason) if reason else ""


def recompile_limit(limit: int) -> Any:
    """A context in which Dynamo compiles one function up to ``limit`` times."""
    return torch._dynamo.config.patch(recompile_limit=limit)


def unlimited_recompiles() -> Any:
    """A context in which Dynamo never gives up on a function for being compiled too often."""
    return torch._dynamo.config.patch(recompile_limit=2**30, accumulated_recompile_limit=2**30)


def compile_seconds() -> dict[str, float]:
    """Seconds that this process has spent in each phase of compiling, as Dynamo counts them."""
    return {name: sum(seconds) for name, seconds in torch._dynamo.utils.compilation_time_metrics.items()}


def compiled_call(model: nn.Module) -> Callable[..., Any] | None:
    """What ``model.compile`` put on the model: called instead of its forward; None for a model without."""
    return model._compiled_call_impl


def set_compiled_call(model: nn.Module, call: Callable[..., Any] | None) -> None:
    """Put back what `compiled_call` gave, or take it off with None. The model may be without its state yet."""
    vars(model)["_compiled_call_impl"] = call


def steers_dynamo(error: BaseException) -> bool:
    """True for what torch raises inside a backend to ask Dynamo for another capture, or to leave the frame alone.

    Inductor does so for a float that turns out to be a constant (``TensorifyScalarRestartAnalysis``).
    """
    from torch._dynamo import exc

    return isinstance(error, exc.RestartAnalysis | exc.SkipFrame)


@contextmanager
def whole_in_ddp() -> Iterator[None]:
    """Let Dynamo capture what is called as it is inside of the forward of a ``DistributedDataParallel``.

    It would split a graph at the buckets of the gradients, and hand a backend parts of a decoder.
    """
    kind: Any = nn.parallel.DistributedDataParallel
    active = kind._active_ddp_module
    if active is None:
        yield
        return
    kind._active_ddp_module = None
    try:
        yield
    finally:
        kind._active_ddp_module = active


def uncompiled_call(model: nn.Module) -> Callable[..., Any]:
    """A model's forward and its hooks, whatever ``model.compile`` put on it."""
    call: Callable[..., Any] = type(model)._call_impl.__get__(model)
    return call


def inside_torch_compile(model: nn.Module) -> nn.Module:
    """The model itself of what ``torch.compile(model)`` gave; any other module as it is."""
    inner = vars(model).get("_modules", {}).get("_orig_mod") if type(model).__name__ == "OptimizedModule" else None
    return inner if isinstance(inner, nn.Module) else model


def with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a code object of its own.

    Dynamo counts recompiles by code object, which all models of a process would share: after eight of them the next
    would silently run dense.
    """
    function.__code__ = function.__code__.replace()
    return function


def never_traced(function: Callable[..., Any]) -> Any:
    """A function that a ``torch.compile`` around it runs as it is, between two of its graphs.

    Functions that it calls, and which are compiled themselves, run their compiled code.
    """
    reason = "opskip_compile.compile has compiled this model's decoder; leave fullgraph=True out around it"
    return torch.compiler.disable(function, reason=reason)  # type: ignore[no-untyped-call]


def is_dynamo_disabled() -> bool:
    """True if Dynamo compiles nothing, and gives up for good whatever is called meanwhile."""
    return bool(torch._dynamo.config.disable) or os.environ.get("TORCHDYNAMO_DISABLE") == "1"


def why_dynamo_is_off() -> str:
    """Why nothing at all is compiled at present; empty if Dynamo is at work."""
    from torch._dynamo import eval_frame

    if is_dynamo_disabled():
        how = "TORCH_COMPILE_DISABLE, TORCHDYNAMO_DISABLE, or torch._dynamo.config.disable"
        return f"torch.compile is switched off ({how})"
    stance = eval_frame._stance.stance
    return "" if stance == "default" else f"torch.compiler.set_stance({stance!r}) is in force"


def compiles_of(function: Callable[..., Any]) -> int:
    """How many times Dynamo has compiled the code of ``function``."""
    from torch._dynamo import eval_frame

    return len(eval_frame._debug_get_cache_entry_list(function.__code__))


def highest_recompile_count() -> int:
    """How many times Dynamo compiles one function at most."""
    return int(torch._dynamo.config.recompile_limit)


def set_apart(tensor: torch.Tensor) -> None:
    """Keep ``tensor`` out of code that Dynamo compiled for other tensors of its shape.

    Dynamo guards on the dimensions that a user has marked as dynamic: code for a tensor without marks does not fit one
    with a mark; the other way round it does. The dimension that is marked here does not exist, so no size is dynamic.
    """
    marked: set[int] = getattr(tensor, "_dynamo_dynamic_indices", set())
    tensor._dynamo_dynamic_indices = {*marked, tensor.dim()}  # type: ignore[attr-defined]
    tensor._has_dynamo_dim_marking = True  # type: ignore[attr-defined]


def any_size(tensor: torch.Tensor, dim: int) -> None:
    """Let dimension ``dim`` be of any size in code that is compiled for ``tensor``."""
    torch._dynamo.mark_dynamic(tensor, dim)


def emit_artifact(name: str, payload: Callable[[], str]) -> None:
    """One structured trace artefact; tlparse lists it under the current compile."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "string"},
        payload_fn=payload,
    )
