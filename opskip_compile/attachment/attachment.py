"""One model that `compile` has compiled: what was put on it, so that `remove` can take it off."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from opskip_compile import _compat
from opskip_compile.attachment import carrier
from opskip_compile.attachment.around import Surroundings
from opskip_compile.attachment.decoder import layers_of, modules_around
from opskip_compile.attachment.forward import CompiledForward
from opskip_compile.attachment.say import say_expanded, say_no_rows
from opskip_compile.attachment.step import is_traced_step
from opskip_compile.attachment.whole import CompiledCall
from opskip_compile.backend import agreement, capture
from opskip_compile.backend.row_tokens import NAMING
from opskip_compile.backend.settings import Settings
from opskip_compile.models.rows import embedded_mask, token_mask, visual_tokens, without_plain_tokens
from opskip_compile.passes.marks import MARKS
from opskip_compile.passes.row_counts import RowCounts
from opskip_compile.schedule.modalities import VISUAL, tokens_by_modality

ATTRIBUTE = "_opskip_compiled"
# How arguments begin that bring a prompt's pictures or sounds.
PICTURES, SOUNDS = ("pixel_values", _compat.ENCODED_PICTURES), ("input_features", "input_values", "audio")


def _is_given(value: object) -> bool:
    """False for None, and for a dictionary that holds nothing."""
    return bool(value) if isinstance(value, Mapping) else value is not None


class ThreadState(threading.local):
    """What a thread knows of the forward that it is in. A copy, and a pickle, knows nothing.

    Attributes:
        mask: the visual mask of the prompt, bool ``(batch, sequence)``.
        rooms: what `RowCounts.count` says of it.
        ids: the token ids of the prompt, if it has any.
    """

    mask: Tensor | None = None
    ids: Tensor | None = None
    rooms: tuple[Tensor, ...] = ()

    def __reduce__(self) -> tuple[type[ThreadState], tuple[()]]:
        return type(self), ()


class Attachment:
    """What `compile` put on one model. A deep copy of the model, and a pickle of it, has one of its own.

    Everything that hangs on the model (hooks, forwards) is a method or an object that leads here and no closure,
    so that a copy of the model is compiled for its own weights. A part of the model that is copied alone is dense.

    Args:
        model: the model.
        decoder: its text decoder; None to compile the model as a whole.
        options: of the backend.
        kwargs: of ``torch.compile``.
        regional: compile every layer of the decoder on its own.
        prefill_only: leave prompts without visual rows, and decode steps, as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: nn.Module | None,
        options: dict[str, Any],
        kwargs: dict[str, Any],
        *,
        regional: bool = False,
        prefill_only: bool = False,
    ) -> None:
        self.model, self.decoder, self.prefill_only = model, decoder, prefill_only
        self.options, self.kwargs = options, kwargs
        settings = Settings.parse(options)
        modalities = settings.modalities or VISUAL
        self.tokens = visual_tokens(model, modalities)
        known = tokens_by_modality(getattr(model, "config", None))
        self._tokens_of = {name: tuple(known[name]) for name in modalities if name in known}
        self._features = (*(PICTURES if {*VISUAL} & {*modalities} else ()), *(SOUNDS if "audio" in modalities else ()))
        self.row_counts = RowCounts.of(settings.schedule, settings.rows_multiple)
        self.here = ThreadState()
        self.groups: tuple[tuple[str, str], ...] | None = None  # of processes that have parts of the weights
        self.handles: list[Any] = []
        self.layers = [] if decoder is None else layers_of(decoder)
        self.surroundings = Surroundings(self.layers)
        self.by_layer: list[CompiledForward] = []  # made when something stands around the layers
        whole = [] if decoder is None or regional else [CompiledForward(self, decoder, options, is_layer=False)]
        self.forwards = self._of_layers() if regional else whole

    def put_on(self) -> None:
        """Compile the model: the decoder's forward, or the model's whole call."""
        capture.install_for(self)
        carrier.put_on(self.model)
        if self.decoder is None:
            self._compile_call()
            return
        for forward in self.forwards:
            forward.compiled("image")  # bad arguments of torch.compile are told at once
        owners = modules_around(self.model, self.decoder)
        self._outermost = owners[0]
        for owner in owners:
            self.handles.append(owner.register_forward_pre_hook(self.before, with_kwargs=True))
        self.handles.append(self.decoder.register_forward_pre_hook(self.at_decoder, with_kwargs=True))
        for module in (*owners, self.decoder):
            self.handles.append(module.register_forward_hook(self.after, with_kwargs=True, always_call=True))
        self.attach()

    def take_off(self) -> None:
        """Leave the model as it was before `put_on`; may be called again."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        carrier.take_off(self.model)
        self.detach()
        capture.uninstall_for(self)

    def attach(self) -> None:
        """Let the parts of the model run their compiled forwards."""
        for forward in self.forwards:
            forward.put_on()

    def detach(self) -> Callable[[], None]:
        """Let the model run dense; returns what puts the compiled code back."""
        if self.decoder is None:
            call = _compat.compiled_call(self.model)
            _compat.set_compiled_call(self.model, None)
            return lambda: _compat.set_compiled_call(self.model, call)
        for forward in (*self.forwards, *self.by_layer):
            forward.take_off()
        return self.attach

    def goes_by_layer(self) -> bool:
        """Let every layer run compiled code of its own if, and as long as, something stands around the layers.

        Not in a dry run, which ends with the first graph.
        """
        if self.options.get("dry_run") or not self.surroundings.part_the_decoder():
            for forward in self.by_layer:
                forward.take_off()
            return False
        self.by_layer = self.by_layer or self._of_layers()
        for forward in self.by_layer:
            forward.put_on()
        return True

    def _of_layers(self) -> list[CompiledForward]:
        count = len(self.layers)
        return [
            CompiledForward(self, layer, {**self.options, "layer": (i, count)}, is_layer=True)
            for i, layer in enumerate(self.layers)
        ]

    # Called by the hooks of the model. But for decode steps, not traced where the user compiles around the model: they
    # ask for real values.

    def before(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A module around the decoder is called: find the visual rows in its token ids or embeddings."""
        if not is_traced_step(args, named):
            self._find_rows(module, args, named)

    def at_decoder(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """The decoder is called: only rows that hold features are visual."""
        if not is_traced_step(args, named):
            self._leave_out_plain_tokens(named)

    def after(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: object) -> None:
        """The decoder, or a module around it, has returned or raised."""
        if not is_traced_step(args, named):
            self._forget_rows()

    @_compat.never_traced
    def _find_rows(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.is_inert:
            return
        if module is self._outermost and not self.options.get("dry_run"):
            self._meet(args, named)
        ids = named.get("input_ids", args[0] if args else None)
        if ids is not None or module is self._outermost:  # an inner module may get embeddings of what the outer one got
            self.here.mask, self.here.ids = token_mask(ids, self.tokens), ids
        if self.here.mask is not None and _compat.expands_tokens(module, self.here.mask):
            self.here.mask = None
            say_expanded()
        given = any(_is_given(value) for name, value in named.items() if name.startswith(self._features))
        if ids is None and self.here.mask is None and given:
            self.here.mask = embedded_mask(named.get("inputs_embeds"), self.model, self.tokens)
            if self.here.mask is None and MARKS.get(named.get("inputs_embeds")) is None:
                say_no_rows()

    def _meet(self, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Where processes have parts of the weights, go on if all of them were given inputs of the same form."""
        if self.groups is None:
            self.groups = _compat.groups_of_weights(self.model)
        if self.groups:
            given = [*enumerate(args), *sorted(named.items())]
            form = [(name, tuple(getattr(value, "shape", ()))) for name, value in given if _is_given(value)]
            for group, device in self.groups:
                agreement.meet((group,), device, "inputs", tuple(form))

    @_compat.never_traced
    def _leave_out_plain_tokens(self, named: dict[str, Any]) -> None:
        if self.is_inert:
            return
        hidden, mask = named.get("inputs_embeds"), self.here.mask
        mark = MARKS.get(hidden)
        if isinstance(hidden, Tensor) and mark is not None:
            mark.used, mask = True, mark.mask if hidden.device.type == "meta" else mark.mask.to(hidden.device)
        elif isinstance(hidden, Tensor) and mask is not None and mask.shape == hidden.shape[:2]:
            mask = without_plain_tokens(mask, hidden, self.model, self.tokens)
        else:
            return
        self.here.rooms = self.row_counts.count(mask)
        self.here.mask = mask if self.here.rooms else None
        NAMING.count = self._rows_by_modality if mark is None else None

    def _rows_by_modality(self) -> dict[str, tuple[int, ...]]:
        """The rows of each modality in each element, where token ids tell them."""
        ids, mask = self.here.ids, self.here.mask
        if ids is None or mask is None or ids.shape != mask.shape:
            return {}
        masks = {name: token_mask(ids, tokens) for name, tokens in self._tokens_of.items()}
        there = {name: (found.to(mask.device) & mask) for name, found in masks.items() if found is not None}
        return {name: tuple(found.sum(1).tolist()) for name, found in there.items()}

    @_compat.never_traced
    def _forget_rows(self) -> None:
        self.here.mask, self.here.ids, self.here.rooms, NAMING.count = None, None, (), None

    # Copies.

    @property
    def is_inert(self) -> bool:
        """True for what a part of the model has that was copied alone."""
        return self.model is None

    def is_copied_with(self, memo: dict[int, Any]) -> bool:
        """True if the deep copy that is under way copies the whole model."""
        return id(self.model) in memo

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        if self.is_copied_with(memo):
            new.__setstate__({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        else:
            vars(new).update(model=None, here=ThreadState())
        return new

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.is_inert:
            return
        capture.install_for(self)
        if self.decoder is None:
            self._compile_call()

    def _compile_call(self) -> None:
        _compat.set_compiled_call(self.model, CompiledCall(self.model, self.options, self.kwargs).run)
