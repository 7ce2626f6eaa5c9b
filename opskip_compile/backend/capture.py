"""Let Dynamo capture DeepStack decoders as one graph.

Qwen3-VL and its relatives add image features inside the layer loop by boolean indexing, whose result has a
data-dependent size: Dynamo breaks the graph there and compiles layer by layer. While compiling, the same method is
traced in a form without ``nonzero`` (zeros with the features scattered in, then one addition), which also names the
visual rows. Outside of compilation the model's own method runs.

The form is put on when the backend is first used, and taken off with the last model that uses it. So long Dynamo also
leaves out transformers' log lines that are said once, at which it would end the graph.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from opskip_compile import _compat
from opskip_compile.passes.runtime import mark_deepstack


class _Capture:
    """What is on, and for whom."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # no thread may trace a class that another one has only begun to prepare
        self.prepared: set[str] = set()
        self.patches: dict[type, _compat.Patch] = {}
        self.users: WeakSet[Any] = WeakSet()
        self.on = self.kept = False


_STATE = _Capture()


def install() -> None:
    """Prepare every decoder class of transformers that has the method, now and whenever a compile starts.

    It stays until `unpatch`, whichever models are removed: who names the backend in ``torch.compile`` does not say when
    a model is done with. Safe to call again; a module is looked at once.
    """
    with _STATE.lock:
        _STATE.kept = True
        _apply()


def install_for(user: object) -> None:
    """As `install`, until `uninstall_for` of the last user."""
    with _STATE.lock:
        _STATE.users.add(user)
        _apply()


def uninstall_for(user: object) -> None:
    """``user`` does not need it any more; does nothing if it is no user."""
    with _STATE.lock:
        if user not in _STATE.users:
            return
        _STATE.users.discard(user)
        if not _STATE.users and not _STATE.kept:
            unpatch()


def reinstall() -> None:
    """A graph was captured: if nobody is known to use the backend, somebody does after all."""
    with _STATE.lock:
        if not _STATE.users:
            _STATE.kept = True
        _apply()


def unpatch() -> None:
    """Put back every method of transformers that was replaced, and take our callback off Dynamo.

    `remove` of the last model that `compile` compiled does the same, unless the backend was also used by its name, with
    ``torch.compile(backend="opskip")``. Compiled code stays as it is and goes on skipping rows. The next call of
    `compile`, or of ``torch.compile`` with the backend's name, replaces the methods again. Only code from before that
    is compiled once more for other inputs meets the model's own method: a Qwen3-VL decoder is then captured layer by
    layer and runs dense.

    Nothing else in transformers or torch stays replaced: what mends Inductor is on only while it lowers our graphs.
    """
    with _STATE.lock:
        _STATE.kept = False
        _STATE.users.clear()
        if not _STATE.on:
            return
        _STATE.on = False
        _compat.not_on_compile_start(_prepare)
        _compat.ignore_log_lines(False)
        for patch in _STATE.patches.values():
            patch.revert()
        _STATE.prepared.clear()
        _compat.forget_backend("opskip")


def _apply() -> None:
    _STATE.on = True
    _compat.on_compile_start(_prepare)
    _compat.ignore_log_lines()
    _prepare()


def _prepare() -> None:
    with _STATE.lock:
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers.models.") and ".modeling_" in name and name not in _STATE.prepared:
                for kind in list(vars(module).values()):
                    if isinstance(kind, type):
                        _prepare_class(kind)
                _STATE.prepared.add(name)


def _prepare_class(kind: type) -> None:
    patch = _STATE.patches.get(kind)
    if patch is None:
        method = vars(kind).get(_compat.DEEPSTACK_METHOD)
        if method is None or not _fits(method):
            return
        patch = _STATE.patches[kind] = _compat.Patch(lambda: (kind, _compat.DEEPSTACK_METHOD), _traceable)
    patch.apply()


def _fits(method: Callable[..., Any]) -> bool:
    return tuple(inspect.signature(method).parameters) == _compat.DEEPSTACK_PARAMETERS


def _traceable(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def deepstack(self: Any, hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return method(self, hidden_states, visual_pos_masks, visual_embeds)
        mask = visual_pos_masks.to(hidden_states.device)
        features = visual_embeds.to(hidden_states.device, hidden_states.dtype)
        added = torch.zeros_like(hidden_states).masked_scatter(mask.unsqueeze(-1), features)
        return mark_deepstack(hidden_states + added, visual_pos_masks)

    return deepstack
