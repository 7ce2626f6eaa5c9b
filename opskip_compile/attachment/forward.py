"""The forward of a decoder, or of one layer, that runs compiled code for what the prompt holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from opskip_compile import _compat
from opskip_compile.attachment.around import inside
from opskip_compile.attachment.compiled import Compiled
from opskip_compile.attachment.say import say_counted_in_part, say_not_compiled, say_other_rows
from opskip_compile.attachment.step import is_traced_step
from opskip_compile.passes.row_counts import RowCounts
from opskip_compile.passes.runtime import name_rows


class Owner(Protocol):
    """What a forward asks of the attachment that it belongs to."""

    model: nn.Module
    here: Any
    kwargs: dict[str, Any]
    prefill_only: bool
    row_counts: RowCounts

    def is_copied_with(self, memo: dict[int, Any]) -> bool:
        """True if the deep copy that is under way copies the whole model."""

    def goes_by_layer(self) -> bool:
        """True if the layers of the decoder run compiled code of their own at present."""


def _with_plain_strides(value: Any) -> Any:
    """Positions and masks that are a part of longer ones, as tensors of their own; anything else as it is.

    Dynamo guards on strides, also where a size is 1 and they mean nothing, so every length would be compiled again.
    """
    small = isinstance(value, Tensor) and not value.is_floating_point() and value.dim() in (2, 3)
    if not small or type(value) is not Tensor:
        return value
    size = 1
    for length, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        if stride != size:
            return value.clone(memory_format=torch.contiguous_format)
        size *= length
    return value


class CompiledForward:
    """Stands for the forward of ``part``: compiled code for prompts with visual rows, for text, and for decode steps.

    Each of the three has Dynamo's recompile limit for itself: caches, batches and masks of one do not use up that of
    another.

    Args:
        owner: knows the visual rows of the forward that runs.
        part: a text decoder, or one layer of it.
        options: of the backend.
        is_layer: the part is a layer, which gets the rows as its first argument, ``hidden_states``.
    """

    def __init__(self, owner: Owner, part: nn.Module, options: dict[str, Any], is_layer: bool) -> None:
        self.owner: Owner | None = owner
        self.part, self.options, self.is_layer = part, options, is_layer
        self.stream = "hidden_states" if is_layer else "inputs_embeds"
        # A forward of the module's own, not of its class, or the one inside of a hook of accelerate.
        self.replaced: Callable[..., Any] | None = vars(part).get(_compat.forward_slot(part))
        self._compiled: dict[str, Compiled] = {}

    def put_on(self) -> None:
        """Let the part run this."""
        if self._slot() is None:
            setattr(self.part, _compat.forward_slot(self.part), self.run)

    def take_off(self) -> None:
        """Let the part run its own forward again; may be called again."""
        slot = self._slot()
        if slot is None:
            return
        delattr(self.part, slot)
        if self.replaced is not None or slot != "forward":
            setattr(self.part, slot, self.dense)

    def _slot(self) -> str | None:
        """The attribute of the part in which this stands, if it does: hooks may have come or gone since."""
        slots = ("forward", _compat.forward_slot(self.part))
        return next((s for s in slots if getattr(vars(self.part).get(s), "__self__", None) is self), None)

    @property
    def dense(self) -> Callable[..., Any]:
        """The part's own forward."""
        dense: Callable[..., Any] = self.replaced or type(self.part).forward.__get__(self.part)
        return dense

    def compiled(self, kind: str) -> Compiled:
        """The compiled function for ``"image"`` prompts, ``"text"``, a decode ``"step"``, or under ``"modes"``.

        Dynamo traces it when it is first called. It is another one in training and under another gradient mode: code
        for one of them never fits the other, and would use up its recompile limit.
        """
        gradients = f"gradients {torch.is_grad_enabled()}, inference {torch.is_inference_mode_enabled()}"
        key = f"{kind}, training {self.part.training}, {gradients}"
        found = self._compiled.get(key)
        if found is None:
            assert self.owner is not None
            modes = kind == "modes"
            found = Compiled(self._traced(), self.options, self.owner.kwargs, self.is_layer, under_modes=modes)
            found = self._compiled.setdefault(key, found)
        return found

    def _traced(self) -> Callable[..., Any]:
        assert self.owner is not None
        dense, stream, names = self.dense, self.stream, self.owner.row_counts.names

        def part_forward(visual_mask: Tensor | None, rooms: tuple[Tensor, ...], *args: Any, **named: Any) -> Any:
            if visual_mask is not None and stream in named:
                named[stream] = name_rows(named[stream], visual_mask, names if rooms else (), rooms)
            elif visual_mask is not None:
                args = (name_rows(args[0], visual_mask, names if rooms else (), rooms), *args[1:])
            return dense(*args, **named)

        return part_forward

    def run(self, *args: Any, **named: Any) -> Any:
        """The forward that the part runs. Whoever compiles around it runs it as it is, between two graphs."""
        if not is_traced_step(args, named):
            return self._run(*args, **named)
        # Dynamo of torch 2.11 can't bind a method.
        return self.replaced(*args, **named) if self.replaced else type(self.part).forward(self.part, *args, **named)

    @_compat.never_traced
    def _run(self, *args: Any, **named: Any) -> Any:
        owner = self.owner
        if owner is None or (not self.is_layer and owner.goes_by_layer()):
            return self.dense(*args, **named)
        hidden, mask = named.get(self.stream, args[0] if self.is_layer and args else None), owner.here.mask
        if mask is not None and not (isinstance(hidden, Tensor) and mask.shape == hidden.shape[:2]):
            mask = None
            say_other_rows(self.stream)
        # Where Dynamo compiles nothing it would give the function up, for good.
        under_modes, is_off = _compat.dispatch_modes_are_on(), _compat.is_dynamo_disabled()
        if is_off and mask is not None:
            say_not_compiled(owner.model)
        if is_off or (mask is None and (owner.prefill_only or under_modes)):
            return self.dense(*args, **named)
        if mask is None:
            is_step = isinstance(hidden, Tensor) and hidden.shape[1] == 1
            return self._call(self.compiled("step" if is_step else "text"), None, (), args, named)[0]
        assert isinstance(hidden, Tensor)
        owner.here.rooms = owner.here.rooms or owner.row_counts.count(mask)
        if mask.device != hidden.device:  # for the next layers there as well
            mask = owner.here.mask = mask.to(hidden.device)
            owner.here.rooms = tuple(room.to(hidden.device) for room in owner.here.rooms)
        compiled = self.compiled("modes" if under_modes else "image")
        result, graphs = self._call(compiled, mask, owner.here.rooms, args, named)
        if not graphs and not self.options.get("dry_run"):
            say_not_compiled(owner.model, compiled.function)
        elif under_modes and graphs > 1:
            say_counted_in_part(graphs)
        return result

    def _call(
        self,
        compiled: Compiled,
        mask: Tensor | None,
        rooms: tuple[Tensor, ...],
        args: tuple[Any, ...],
        named: dict[str, Any],
    ) -> tuple[Any, int]:
        named = {name: _with_plain_strides(value) for name, value in named.items()}
        mask = _with_plain_strides(mask)
        for room in rooms:
            _compat.any_size(room, 0)
        if not self.is_layer:
            return compiled(mask, rooms, *args, **named)
        graphs = 0

        def call(*args: Any) -> Any:
            nonlocal graphs
            result, graphs = compiled(mask, rooms, *args, **named)
            return result

        return inside(self.part, call, *args), graphs

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledForward:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        state = self.__getstate__()
        if self.owner is not None and not self.owner.is_copied_with(memo):
            state["owner"] = None  # the part is copied alone
        vars(new).update(copy.deepcopy(state, memo))
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_compiled": {}}
