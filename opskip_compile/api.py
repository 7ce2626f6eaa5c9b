"""The verbs: compile a model in place, take it back, and ask what the compiler did or would do.

`compile` puts the backend on the text decoder alone, the part that is worth it, and hands it the mask of the visual
rows as an argument, so that Dynamo's own guards tell a prompt with images from one without.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile import _compat
from opskip_compile.backend import capture
from opskip_compile.backend.entry import DecoderReached, opskip
from opskip_compile.backend.reports import REPORTS
from opskip_compile.backend.settings import Settings
from opskip_compile.errors import NothingSkippedWarning, OpSkipError, OptionError
from opskip_compile.models.rows import carry_marks, token_mask, visual_tokens, without_plain_tokens
from opskip_compile.passes.marks import MARKS, NOT_SKIPPED
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.report.report import Report
from opskip_compile.schedule.schedule import Schedule

_STATE = "_opskip_compiled"
_RUNS = itertools.count(1)


class _Compiled:
    """What `compile` did to one model, so that `remove` can undo it."""

    def __init__(
        self, model: nn.Module, decoder: nn.Module | None, regional: bool = False, prefill_only: bool = False
    ) -> None:
        self.model, self.decoder, self.prefill_only = model, decoder, prefill_only
        self.parts = [] if decoder is None else _layers(decoder) if regional else [decoder]
        # A forward of the module's own, not of its class, as device maps put it there.
        self.dense = [vars(part).get("forward") for part in self.parts]
        self.handles: list[Any] = []
        self.undo_carrying = carry_marks(model)
        self._local = threading.local()

    @property
    def mask(self) -> Tensor | None:
        """The visual mask of the forward that this thread is in, bool ``(batch, sequence)``."""
        return getattr(self._local, "mask", None)

    @mask.setter
    def mask(self, value: Tensor | None) -> None:
        self._local.mask = value

    def undo(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.undo_carrying()
        self.detach()

    def detach(self) -> Callable[[], None]:
        """Let the model run dense; returns what puts the compiled code back."""
        if self.decoder is None:
            call = _compat.compiled_call(self.model)
            _compat.set_compiled_call(self.model, None)
            return lambda: _compat.set_compiled_call(self.model, call)
        forwards = [vars(part).pop("forward", None) for part in self.parts]
        for part, dense in zip(self.parts, self.dense, strict=True):
            if dense is not None:
                part.forward = dense

        def put_back() -> None:
            for part, forward in zip(self.parts, forwards, strict=True):
                part.forward = forward

        return put_back


def compile(
    model: nn.Module,
    schedule: Schedule | str | Mapping[str, Any] | None = None,
    *,
    regional: bool = False,
    prefill_only: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Compile ``model`` in place with the ``opskip`` backend; ``model(...)`` and ``model.generate(...)`` use it.

    For a transformers model whose config names its image token, the text decoder is compiled and the rows of image
    and video tokens are the visual rows. Any other module is compiled whole, and its own code has to name the rows
    with `mark_visual`.

    Args:
        model: the model.
        schedule: what to skip: a `Schedule`, spec text, a path or a dict; None for the default resolution.
        regional: compile every layer of the text decoder on its own instead of the decoder as one graph: many small
            compiles, for a decoder whose code between the layers can't be captured.
        prefill_only: leave decode steps and prompts without visual rows as they are, eager: fewer compiles where only
            a few tokens are generated. Not for a module that is compiled whole.
        **kwargs: of ``torch.compile``; ``options`` are the backend's (see `Settings`).

    Returns:
        ``model``. Compiling again replaces what was there.

    Raises:
        OptionError, ScheduleError: bad options or a bad schedule, before anything is changed.
    """
    decoder = decoder_of(model)
    if regional and (decoder is None or not _layers(decoder)):
        raise OptionError(f"regional: {type(model).__name__} has no text decoder with a list of layers")
    if prefill_only and decoder is None:
        raise OptionError(f"prefill_only: {type(model).__name__} is compiled whole: it has no text decoder of its own")
    options = _options(model, schedule, kwargs)
    remove(model)
    state = _Compiled(model, decoder, regional, prefill_only)
    capture.install_for(state)
    if decoder is None:
        model.compile(backend=opskip, options=options, **kwargs)
    else:
        _compile_decoder(state, decoder, options, kwargs)
    setattr(model, _STATE, state)
    return model


def remove(model: nn.Module) -> nn.Module:
    """Take `compile` back: ``model`` is dense and eager again. Does nothing to a model that was not compiled.

    The last model takes with it what `compile` replaced in transformers and Dynamo; see `unpatch`.
    """
    state = vars(model).pop(_STATE, None)
    if state is not None:
        state.undo()
        capture.uninstall_for(state)
    return model


def explain(
    model: nn.Module,
    inputs: Mapping[str, Any] | Sequence[Any] | Tensor,
    schedule: Schedule | str | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Report:
    """What `compile` would do to ``model`` for these inputs: capture and passes, without lowering.

    What comes before the decoder runs (eagerly); the decoder itself does not. A decoder on the meta device can be
    explained as well, with the mask of its visual rows on the CPU and without a cache (``use_cache=False``).
    ``model`` stays as it is, compiled or not.

    Args:
        model: the model.
        inputs: keyword inputs of one forward as a mapping, positional ones as a sequence, or one tensor.
        schedule, **kwargs: as for `compile`.

    Returns:
        The report of the decoder's graph, as `last_report` gives it, with its diff. Without visual rows or a
        decoder in reach it is the report of the last graph, and its ``reason`` says so.

    Raises:
        OptionError, ScheduleError: bad options, a bad schedule, or one that does not fit.
        RewriteError: under ``strict``, an operator of the schedule has to stay full.
        OpSkipError: Dynamo captured no graph at all.
    """
    if isinstance(inputs, Mapping):
        args, named = (), dict(inputs)
    else:
        args, named = ((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), {}
    given = {**(kwargs.pop("options", None) or {}), "lower": "eager", "dry_run": next(_RUNS)}
    options = _options(model, schedule, {**kwargs, "options": given})
    kwargs.pop("mode", None)
    earlier = REPORTS.count
    with decompiled(model), _compat.unlimited_recompiles(), torch.no_grad():
        state = _Compiled(model, decoder_of(model))
        capture.install_for(state)
        try:
            if state.decoder is not None:
                _compile_decoder(state, state.decoder, options, kwargs)
                model(*args, **named)
            else:
                whole = with_own_code(lambda *a, **k: model(*a, **k))
                torch.compile(whole, backend=opskip, options=options, **kwargs)(*args, **named)
        except DecoderReached as reached:
            return reached.report
        except Exception as error:
            own = getattr(error, "inner_exception", None)
            raise (own if isinstance(own, OpSkipError) else error) from None
        finally:
            state.undo()
            capture.uninstall_for(state)
    made = REPORTS.since(earlier)
    if not made:
        raise OpSkipError(f"explain: no graph of {type(model).__name__} was captured for these inputs")
    return made[-1]


@contextmanager
def decompiled(model: nn.Module) -> Iterator[None]:
    """Take off what `compile` or ``model.compile`` put on the model, for a while."""
    state = vars(model).pop(_STATE, None)
    put_back = None if state is None else state.detach()
    call = _compat.compiled_call(model)
    _compat.set_compiled_call(model, None)
    try:
        yield
    finally:
        _compat.set_compiled_call(model, call)
        if state is not None and put_back is not None:
            put_back()
            setattr(model, _STATE, state)


def last_report() -> Report:
    """What the latest compile did: the newest report of a graph that holds a decoder, else the newest of all.

    Raises:
        OpSkipError: nothing was compiled yet.
    """
    reports = REPORTS.all()
    if not reports:
        raise OpSkipError(
            "last_report: nothing was compiled with the opskip backend yet (torch.compile compiles lazily)"
        )
    decoders = [report for report in reports if report.operators]
    return (decoders or list(reports))[-1]


def reports() -> tuple[Report, ...]:
    """The reports of the latest graphs, oldest first."""
    return REPORTS.all()


def _options(
    model: nn.Module, schedule: Schedule | str | Mapping[str, Any] | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The backend's options, checked; what goes into them is taken out of ``kwargs``."""
    if "backend" in kwargs:
        raise OptionError("backend: opskip_compile always uses 'opskip'")
    options = dict(kwargs.pop("options", None) or {})
    if schedule is not None:
        if "schedule" in options:
            raise OptionError("options.schedule: the schedule is given twice")
        options["schedule"] = Schedule.of(schedule)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if isinstance(kind, str) and kind:
        options.setdefault("model_type", kind)
    Settings.parse(options, kwargs.get("mode"))
    if kwargs.get("mode") is not None:
        options["mode"] = kwargs.pop("mode")
    return options


def with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a code object of its own.

    Dynamo counts recompiles by code object, which all models of a process would share: after eight of them the next
    would silently run dense.
    """
    function.__code__ = function.__code__.replace()
    return function


def _compile_decoder(state: _Compiled, decoder: nn.Module, options: dict[str, Any], kwargs: dict[str, Any]) -> None:
    model = state.model
    owners, tokens = modules_around(model, decoder), visual_tokens(model)
    regional = state.parts[0] is not decoder

    def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", args[0] if args else None)
        if ids is not None or module is owners[0]:  # an inner module may get embeddings of what the outer one got
            state.mask = token_mask(ids, tokens)
        pixels = any(v is not None for k, v in named.items() if k.startswith("pixel_values"))
        if ids is None and state.mask is None and pixels:
            why = "the forward got no input_ids, so the image tokens are not known"
            warnings.warn(NOT_SKIPPED.format(why=why), NothingSkippedWarning, stacklevel=2)

    def at_decoder(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden, mask = named.get("inputs_embeds"), state.mask
        mark = MARKS.get(hidden)
        if isinstance(hidden, Tensor) and mark is not None:
            mark.used, state.mask = True, mark.mask.to(hidden.device)
        elif isinstance(hidden, Tensor) and mask is not None and mask.shape == hidden.shape[:2]:
            state.mask = without_plain_tokens(mask, hidden, model, tokens)

    def after(module: nn.Module, args: object, output: object) -> None:
        state.mask = None

    for owner in owners:
        state.handles.append(owner.register_forward_pre_hook(before, with_kwargs=True))
    state.handles.append(decoder.register_forward_pre_hook(at_decoder, with_kwargs=True))
    for module in (*owners, decoder):
        state.handles.append(module.register_forward_hook(after, always_call=True))
    for i, part in enumerate(state.parts):
        own = {**options, "layer": (i, len(state.parts))} if regional else options
        part.forward = _compiled_forward(
            state, part.forward, "hidden_states" if regional else "inputs_embeds", own, kwargs
        )


def _compiled_forward(
    state: _Compiled, dense: Callable[..., Any], stream: str, options: dict[str, Any], kwargs: dict[str, Any]
) -> Callable[..., Any]:
    """The forward of the decoder or of one layer, compiled; ``stream`` names the argument that carries the rows."""
    first = stream == "hidden_states"  # layers get it as their first argument

    def compiled() -> Callable[..., Any]:
        def part_forward(visual_mask: Tensor | None, *args: Any, **named: Any) -> Any:
            if visual_mask is not None and stream in named:
                named[stream] = mark_visual(named[stream], visual_mask)
            elif visual_mask is not None:
                args = (mark_visual(args[0], visual_mask), *args[1:])
            return dense(*args, **named)

        return torch.compile(with_own_code(part_forward), backend=opskip, options=options, **kwargs)

    # Each has Dynamo's recompile limit for itself: caches, batches and masks of one do not use up that of another.
    with_image, without_image, one_row = compiled(), compiled(), compiled()

    def forward(*args: Any, **named: Any) -> Any:
        mask, hidden = state.mask, named.get(stream, args[0] if first and args else None)
        if mask is not None and not (isinstance(hidden, Tensor) and mask.shape == hidden.shape[:2]):
            mask = None
            why = f"the decoder was not called with {stream}= of as many rows as there are input_ids"
            warnings.warn(NOT_SKIPPED.format(why=why), NothingSkippedWarning, stacklevel=2)
        if mask is not None:
            return with_image(mask, *args, **named)
        if state.prefill_only:
            return dense(*args, **named)
        is_decode = isinstance(hidden, Tensor) and hidden.shape[1] == 1
        return (one_row if is_decode else without_image)(None, *args, **named)

    return forward


def _layers(decoder: nn.Module) -> list[nn.Module]:
    """The layers of a text decoder of transformers; empty if it has no list of them."""
    layers = getattr(decoder, "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def decoder_of(model: nn.Module) -> nn.Module | None:
    """The text decoder, if the model's config names the tokens of its visual rows."""
    if not visual_tokens(model):
        return None
    configs = (getattr(model, "config", None), getattr(getattr(model, "config", None), "text_config", None))
    if any(getattr(config, "is_encoder_decoder", False) for config in configs):
        return None  # the rows are in the encoder: the whole model is compiled, and the report says so
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    return decoder if isinstance(decoder, nn.Module) and decoder is not model else None


def modules_around(model: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """The modules around the decoder, the outermost first: one of them gets the token ids and calls the decoder."""
    for name, module in model.named_modules():
        if module is decoder:
            parts = name.split(".")[:-1]
            return [model.get_submodule(".".join(parts[:i])) for i in range(len(parts) + 1)]
    raise OpSkipError(f"compile: the decoder of {type(model).__name__} is not one of its submodules")
