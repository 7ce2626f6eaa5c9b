"""Private names of accelerate, whose hooks move tensors and weights, and of transformers' activation checkpointing.

Both stand around the forward of a layer. Dynamo ends its graph at a hook, and captures a checkpoint as a graph of its
own, so compiled code has to be inside of them: layer by layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import nn

_HOOK, _INNER, _CHECKPOINT = "_hf_hook", "_old_forward", "_gradient_checkpointing_func"
_CHECKPOINTED = "gradient_checkpointing"
_OFFLOADED = "AlignDevicesHook"
_LOCK = threading.RLock()


def forward_slot(module: nn.Module) -> str:
    """The attribute in which the module's own forward stands: inside of accelerate's hook if it has one."""
    return _INNER if has_hook(module) and _INNER in vars(module) else "forward"


def has_hook(module: nn.Module) -> bool:
    """True if accelerate has put a hook around the forward of this very module."""
    return vars(module).get(_HOOK) is not None


class HookWatch:
    """Tells whether some modules, or any of their parts, have a hook of accelerate.

    It is asked in every forward: the attributes of all parts are kept, and found again where a part has come or gone.
    With 32 layers of 15 parts each an answer takes some 30 microseconds, a walk through all of them ten times as much.

    Args:
        roots: the modules.
    """

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self._roots = roots
        self._known: tuple[list[dict[str, Any]], list[dict[str, Any]], list[Any]] = [], [], []

    def sees_any(self) -> bool:
        """True if one of them has a hook at present."""
        attributes, tables, parts = self._known
        if not attributes or list(chain.from_iterable(map(dict.values, tables))) != parts:
            attributes = [vars(part) for root in self._roots for part in root.modules()]
            tables = [table for each in attributes if (table := each["_modules"])]
            self._known = attributes, tables, list(chain.from_iterable(map(dict.values, tables)))
        return any(_HOOK in each for each in attributes)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_known": ([], [], [])}  # a copy has modules of its own


def checkpointing(module: nn.Module) -> Callable[..., Any] | None:
    """What checkpoints the forward of a layer of transformers, inside of that forward; None if nothing does at present.

    Older transformers checkpoint around the whole call, where compiled code is inside already.
    """
    if not (module.training and getattr(module, _CHECKPOINTED, False)):
        return None
    code = getattr(type(module).forward, "__code__", None)
    inside = code is not None and _CHECKPOINT in code.co_names
    return vars(module).get(_CHECKPOINT) if inside else None


def is_checkpointed(module: nn.Module) -> bool:
    """True if the activations of a layer of transformers are not kept but computed again."""
    return bool(module.training and getattr(module, _CHECKPOINTED, False))


@contextmanager
def without_checkpointing(module: nn.Module) -> Iterator[None]:
    """Let the forward of a layer run as it is, for who checkpoints it from outside."""
    with _LOCK:
        checkpoint = vars(module)[_CHECKPOINT]
        setattr(module, _CHECKPOINT, _directly)
        try:
            yield
        finally:
            setattr(module, _CHECKPOINT, checkpoint)


def _directly(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    return function(*args, **named)


def hooked_inside(module: nn.Module) -> list[nn.Module]:
    """The modules inside of ``module`` that have a hook of their own: those of off-loaded weights load them."""
    return [part for part in module.modules() if part is not module and has_hook(part)]


def only_load_weights(parts: Iterable[nn.Module]) -> bool:
    """True if the hooks of these modules do nothing but load weights to one device."""
    hooks = [vars(part)[_HOOK] for part in parts]
    return all(type(hook).__name__ == _OFFLOADED for hook in hooks) and (
        len({str(hook.execution_device) for hook in hooks}) <= 1
    )


@contextmanager
def without_hooks(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Let those of ``parts`` that have a hook run without it, with their weights as and where they are."""
    lifted: list[tuple[nn.Module, dict[str, Any]]] = []
    try:
        for part in parts:
            if has_hook(part) and _INNER in vars(part):
                lifted.append((part, {name: vars(part).pop(name) for name in (_HOOK, "forward")}))
                part.forward = vars(part)[_INNER]
        yield
    finally:
        for part, attributes in reversed(lifted):
            vars(part).update(attributes)


@contextmanager
def uncheckpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let layers of transformers keep their activations."""
    were = [layer for layer in layers if is_checkpointed(layer)]
    for layer in were:
        vars(layer)[_CHECKPOINTED] = False
    try:
        yield
    finally:
        for layer in were:
            vars(layer)[_CHECKPOINTED] = True


@contextmanager
def weights_loaded(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Load what the hooks of ``parts`` would load one by one, and let the parts run without their hooks."""
    loaded: list[tuple[nn.Module, Any]] = []
    try:
        for part in parts:
            hook = vars(part)[_HOOK]
            hook.pre_forward(part)
            loaded.append((part, vars(part).pop("forward")))
            part.forward = vars(part)[_INNER]
        yield
    finally:
        for part, forward in reversed(loaded):
            part.forward = forward
            vars(part)[_HOOK].post_forward(part, None)
