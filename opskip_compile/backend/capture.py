"""Let Dynamo capture DeepStack decoders as one graph.

Qwen3-VL and its relatives add image features inside the layer loop by boolean indexing, whose result has a
data-dependent size: Dynamo breaks the graph there and compiles layer by layer. While compiling, the same method is
traced in a form without ``nonzero`` (zeros with the features scattered in, then one addition), which also names the
visual rows. Outside of compilation the model's own method runs.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from opskip_compile import _compat
from opskip_compile.passes.runtime import mark_visual

_METHOD = "_deepstack_process"
_PARAMETERS = ["self", "hidden_states", "visual_pos_masks", "visual_embeds"]


_prepared: set[str] = set()
_lock = threading.Lock()


def install() -> None:
    """Prepare every decoder class of transformers that has the method, now and whenever a compile starts.

    Safe to call again; a module is looked at once.
    """
    _compat.on_compile_start(_prepare)
    _prepare()


def _prepare() -> None:
    with _lock:  # no thread may trace a class that another one has only begun to prepare
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers.models.") and ".modeling_" in name and name not in _prepared:
                _prepare_module(module)
                _prepared.add(name)


def _prepare_module(module: ModuleType) -> None:
    for kind in list(vars(module).values()):
        method = vars(kind).get(_METHOD) if isinstance(kind, type) else None
        if method is not None and not hasattr(method, "__wrapped__") and _fits(method):
            setattr(kind, _METHOD, _traceable(method))


def _fits(method: Callable[..., Any]) -> bool:
    return list(inspect.signature(method).parameters) == _PARAMETERS


def _traceable(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def deepstack(self: Any, hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return method(self, hidden_states, visual_pos_masks, visual_embeds)
        mask = visual_pos_masks.to(hidden_states.device)
        features = visual_embeds.to(hidden_states.device, hidden_states.dtype)
        added = torch.zeros_like(hidden_states).masked_scatter(mask.unsqueeze(-1), features)
        return mark_visual(hidden_states + added, visual_pos_masks)

    return deepstack
