"""Which schedule a decoder gets: the given one, the environment's, a preset that fits, or the uncalibrated fallback."""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterable

from torch import fx

from opskip_compile.errors import ScheduleError, UncalibratedScheduleWarning
from opskip_compile.passes.analysis.operators import Match
from opskip_compile.passes.ops import op_name, tensor
from opskip_compile.passes.state import Resolved
from opskip_compile.schedule.modalities import VISUAL, in_words
from opskip_compile.schedule.presets import match_preset
from opskip_compile.schedule.schedule import Schedule

ENVIRONMENT = "OPSKIP_SCHEDULE"
FALLBACK = "late:0.33"
CACHES = frozenset({"past_key_values", "past_key_value", "cache"})


def asked_modalities(given: Schedule | None) -> tuple[str, ...]:
    """Whose rows the schedule means that `resolve_schedule` will give: presets and the fallback mean visual ones.

    Raises:
        ScheduleError: the environment variable holds no schedule.
    """
    asked = given or _of_environment()
    return VISUAL if asked is None else asked.modalities


def resolve_schedule(
    given: Schedule | None,
    match: Match,
    graph: fx.Graph,
    model_type: str | None = None,
    modalities: tuple[str, ...] | None = None,
) -> Resolved:
    """The schedule for the decoder that was matched in ``graph`` (DESIGN section 4).

    ``model_type`` names the whole model where it is known; the graph's own modules are asked as well. ``modalities``
    are those whose rows the caller of the graph names, where it has looked for them before.

    Raises:
        ScheduleError: the environment variable holds no schedule, or one for rows of other modalities.
    """
    if given is not None:
        return Resolved(given, "given")
    schedule = _of_environment()
    if schedule is not None:
        if modalities not in (None, schedule.modalities):
            raise ScheduleError(
                f"environment variable {ENVIRONMENT}: modalities: means rows of {in_words(schedule.modalities)}, the "
                f"model was compiled for rows of {in_words(modalities)}; compile it again"
            )
        return Resolved(schedule, f"environment variable {ENVIRONMENT}")
    hidden, intermediate = _widths(match)
    for architecture in filter(None, (model_type, *_architectures(graph.nodes))):
        preset = match_preset(architecture, match.num_layers, hidden, intermediate)
        if preset is not None:
            return Resolved(preset.schedule, f"preset {preset.name}")
    if match.doubt:  # no fallback fits layers that can't be counted
        return Resolved(Schedule.from_spec(FALLBACK), "uncalibrated fallback")
    warnings.warn(
        f"opskip: no schedule was given and no preset fits this decoder ({match.num_layers} layers of width {hidden}); "
        f"using the uncalibrated {FALLBACK!r}. Answers may suffer: find one on images of your own (opskip calibrate), "
        "pass it as options={'schedule': ...}, and compare with schedule 'none'.",
        UncalibratedScheduleWarning,
        stacklevel=2,
    )
    return Resolved(Schedule.from_spec(FALLBACK), "uncalibrated fallback")


def _of_environment() -> Schedule | None:
    text = os.environ.get(ENVIRONMENT)
    try:
        return Schedule.of(text) if text else None
    except ScheduleError as error:
        raise ScheduleError(f"environment variable {ENVIRONMENT}: {error}") from None


def _widths(match: Match) -> tuple[int, int | None]:
    """Width of the residual stream and of the FFN, read off the tensors."""
    first = match.operators[0]
    stream = tensor(first.entry)
    assert stream is not None
    ffn = next((op for op in match.operators if op.kind == "ffn"), None)
    widths = [] if ffn is None else [tensor(n) for n in ffn.region if op_name(n) == "linear"]
    return int(stream.shape[-1]), max((int(w.shape[-1]) for w in widths if w is not None), default=None)


def in_encoder_decoder(match: Match) -> bool:
    """True if the operators belong to an encoder-decoder of transformers: where a graph break parts the encoder from
    the decoder, its graph alone looks like a decoder's."""
    auto = sys.modules.get("transformers.models.auto.configuration_auto")
    if auto is None or not match.operators:
        return False
    names = _architectures([match.operators[0].exit, match.operators[-1].exit])
    keys = [key for name in names for key in (name, name.replace("_", "-")) if key in auto.CONFIG_MAPPING_NAMES]
    return any(getattr(auto.CONFIG_MAPPING[key], "is_encoder_decoder", False) is True for key in keys)


def in_text_model(match: Match) -> bool:
    """True if the operators belong to a module of transformers that takes a cache, as no vision tower does."""
    for kind in classes_of([match.operators[-1].exit]) if match.operators else []:
        forward = getattr(kind, "forward", None)
        if forward is not None and not CACHES.isdisjoint(inspect.signature(forward).parameters):
            return True
    return False


def classes_of(nodes: Iterable[fx.Node]) -> list[type]:
    """As `_classes`, the classes themselves, each once, of modules that are loaded."""
    names = (name.rpartition(".") for name in dict.fromkeys(_classes(nodes)))
    found = (getattr(sys.modules.get(module), kind, None) for module, _, kind in names)
    return [kind for kind in found if isinstance(kind, type)]


def _classes(nodes: Iterable[fx.Node]) -> list[str]:
    """The classes of the modules that these nodes belong to, the outermost first."""
    stacks = [node.meta.get("nn_module_stack") or {} for node in nodes]
    kinds = [kind for stack in stacks for _, kind in stack.values()]
    return [kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]


def _architectures(nodes: Iterable[fx.Node]) -> list[str]:
    """transformers model types that the modules of these nodes belong to, the wrapping model first."""
    found: dict[str, None] = {}
    for name in _classes(nodes):
        hit = re.match(r"transformers\.models\.(\w+)\.", name)
        if hit:
            found.setdefault(hit.group(1))
    return list(found)
