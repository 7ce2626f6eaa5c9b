"""The verbs: compile a model in place, take it back, and ask what the compiler did or would do.

`compile` puts the backend on the text decoder alone, the part that is worth it, and hands it the mask of the visual
rows as an argument, so that Dynamo's own guards tell a prompt with images from one without.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile import _compat
from opskip_compile.attachment.around import PARTED, lifted
from opskip_compile.attachment.attachment import ATTRIBUTE, Attachment
from opskip_compile.attachment.decoder import decoder_of, layers_of
from opskip_compile.attachment.say import say_other_modalities
from opskip_compile.backend.entry import DecoderReached
from opskip_compile.backend.reports import REPORTS
from opskip_compile.backend.resolve import asked_modalities
from opskip_compile.backend.settings import Settings
from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.passes.refusal import Refusal, Why
from opskip_compile.report.report import Report
from opskip_compile.schedule.schedule import Schedule

_RUNS = itertools.count(1)


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
    and video tokens are the visual rows; those of audio tokens where the schedule says so
    (``"late:0.33 modalities=audio"``). Any other module is compiled whole, and its own code has to name the rows with
    `mark_visual`.

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
    whole, model = model, _compat.inside_torch_compile(model)
    modalities = _modalities(schedule, kwargs)
    decoder = decoder_of(model, modalities)
    if regional and (decoder is None or not layers_of(decoder)):
        raise OptionError(f"regional: {type(model).__name__} has no text decoder with a list of layers")
    if prefill_only and decoder is None:
        raise OptionError(f"prefill_only: {type(model).__name__} is compiled whole: it has no text decoder of its own")
    options = _options(model, schedule, kwargs, decoder, modalities)
    say_other_modalities(model, modalities)
    remove(model)
    attachment = Attachment(model, decoder, options, kwargs, regional=regional, prefill_only=prefill_only)
    attachment.put_on()
    setattr(model, ATTRIBUTE, attachment)
    return whole


def remove(model: nn.Module) -> nn.Module:
    """Take `compile` back: ``model`` is dense and eager again. Does nothing to a model that was not compiled.

    The last model takes with it what `compile` replaced in transformers and Dynamo; see `unpatch`.
    """
    attachment = vars(_compat.inside_torch_compile(model)).pop(ATTRIBUTE, None)
    if attachment is not None:
        attachment.take_off()
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
        schedule, kwargs: as for `compile`.

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
    given = {**(kwargs.get("options") or {}), "lower": "eager", "dry_run": next(_RUNS)}
    model, earlier = _compat.inside_torch_compile(model), REPORTS.count
    modalities = _modalities(schedule, kwargs)
    decoder = decoder_of(model, modalities)
    options = _options(model, schedule, {**kwargs, "options": given}, decoder, modalities)
    kwargs = {name: value for name, value in kwargs.items() if name not in ("mode", "options")}
    with decompiled(model), lifted(decoder), _compat.unlimited_recompiles(), torch.no_grad():
        attachment = Attachment(model, decoder, options, kwargs)
        try:
            if attachment.surroundings.part_the_decoder():
                return REPORTS.add(Report(refusal=Refusal(Why.PART, PARTED)))
            attachment.put_on()
            model(*args, **named)
        except DecoderReached as reached:
            return reached.report
        except Exception as error:
            own = getattr(error, "inner_exception", None)
            raise (own if isinstance(own, OpSkipError) else error) from None
        finally:
            attachment.take_off()
    made = REPORTS.since(earlier)
    if not made:
        raise OpSkipError(f"explain: no graph of {type(model).__name__} was captured for these inputs")
    return made[-1]


@contextmanager
def decompiled(model: nn.Module) -> Iterator[None]:
    """Take off what `compile` or ``model.compile`` put on the model, for a while."""
    attachment = vars(model).pop(ATTRIBUTE, None)
    put_back = None if attachment is None else attachment.detach()
    call = _compat.compiled_call(model)
    _compat.set_compiled_call(model, None)
    try:
        yield
    finally:
        _compat.set_compiled_call(model, call)
        if attachment is not None and put_back is not None:
            put_back()
            setattr(model, ATTRIBUTE, attachment)


def last_report() -> Report:
    """What the latest compile did: the newest report of a graph that holds a decoder, else the newest of all.

    A later prompt that runs code which is compiled already, has no image, or runs uncompiled has no report of its own.

    Raises:
        OpSkipError: nothing was compiled yet.
    """
    reports = REPORTS.all()
    if not reports:
        raise OpSkipError(
            "last_report: nothing was compiled with the opskip backend yet: no prompt has run, or it ran by generate() "
            "of torch.compile(model, backend='opskip'), which is the uncompiled model's; that of "
            "opskip_compile.compile(model) is compiled"
        )
    decoders = [report for report in reports if report.operators or _was_not_compiled(report)]
    return (decoders or list(reports))[-1]


def _was_not_compiled(report: Report) -> bool:
    return report.refusal is not None and report.refusal.why is Why.NOT_COMPILED


def reports() -> tuple[Report, ...]:
    """The reports of the latest graphs, oldest first."""
    return REPORTS.all()


def _modalities(schedule: Schedule | str | Mapping[str, Any] | None, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Whose rows the schedule means, wherever it is given."""
    if schedule is None:
        schedule = (kwargs.get("options") or {}).get("schedule")
    return asked_modalities(None if schedule is None else Schedule.of(schedule))


def _options(
    model: nn.Module,
    schedule: Schedule | str | Mapping[str, Any] | None,
    kwargs: dict[str, Any],
    decoder: nn.Module | None,
    modalities: tuple[str, ...],
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
    layers = [] if decoder is None else layers_of(decoder)
    if layers:
        options.setdefault("num_layers", len(layers))
    if "modalities" in options:
        raise OptionError(
            "options.modalities: the schedule says whose rows are meant: schedule='late:0.33 modalities=all'"
        )
    if decoder is not None:
        options["in_place"] = True
        options["modalities"] = modalities
        options["attention"] = _compat.attention_implementation(getattr(decoder, "config", None))
    asked = Settings.parse(options, kwargs.get("mode"))
    if asked.schedule is not None and asked.num_layers is not None:
        asked.schedule.resolve(asked.num_layers)  # refused if it was made for another model
    if kwargs.get("mode") is not None:
        options["mode"] = kwargs.pop("mode")
    return options
