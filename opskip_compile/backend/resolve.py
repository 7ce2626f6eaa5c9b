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
from opskip_compile.schedule.presets import match_preset
from opskip_compile.schedule.schedule import Schedule

ENVIRONMENT = "OPSKIP_SCHEDULE"
FALLBACK = "late:0.33"
CACHES = frozenset({"past_key_values", "past_key_value", "cache"})


def resolve_schedule(given: Schedule | None, match: Match, graph: fx.Graph, model_type: str | None = None) -> Resolved:
    """The schedule for the decoder that was matched in ``graph`` (DESIGN section 4).

    ``model_type`` names the whole model where it is known; the graph's own modules are asked as well.

    Raises:
        ScheduleError: the environment variable holds no schedule.
    """
    if given is not None:
        return Resolved(given, "given")
    text = os.environ.get(ENVIRONMENT)
    if text:
        try:
            return Resolved(Schedule.of(text), f"environment variable {ENVIRONMENT}")
        except ScheduleError as error:
            raise ScheduleError(f"environment variable {ENVIRONMENT}: {error}") from None
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
    names = _classes([match.operators[-1].exit]) if match.operators else []
    for module, _, kind in (name.rpartition(".") for name in names):
        forward = getattr(getattr(sys.modules.get(module), kind, None), "forward", None)
        if forward is not None and not CACHES.isdisjoint(inspect.signature(forward).parameters):
            return True
    return False


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
