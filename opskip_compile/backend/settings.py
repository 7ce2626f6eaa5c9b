"""The options of the backend: one frozen dataclass, made by validation from what ``torch.compile`` hands over."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opskip_compile import _compat
from opskip_compile.errors import OptionError
from opskip_compile.schedule.modalities import check_modalities
from opskip_compile.schedule.schedule import Schedule

PADDED = 64
LOWERINGS = ("inductor", "eager")
FLAGS = {"strict": False, "share_rotary": True, "causal": True, "onednn": True, "regions": True}  # option -> default


@dataclass(frozen=True)
class Settings:
    """Options of ``torch.compile(model, backend="opskip", options={...})``.

    Attributes:
        schedule: which operator of which layer leaves out its visual rows; None for the default resolution.
        strict: raise `RewriteError` where an operator of the schedule has to stay full.
        dump: folder for the code before and after, the report and the diff, one set per rewritten graph.
        lower: ``"inductor"``, or ``"eager"`` to run the rewritten graph as it is.
        share_rotary: compute the sines and cosines of the rotary embedding once instead of in every layer.
        causal: find out at run time whether an attention's mask is the causal one, and then use a causal kernel without
            the mask; on a CPU, share heads of keys instead of copying them. Changes the last bits of the result; not
            done where gradients are recorded.
        onednn: let the linear layers of a rewritten graph run in oneDNN (float32 on an AMD processor with AVX-512,
            where MKL is slow). Changes the last bits of the result; not done where gradients are recorded.
        regions: compile layers that are alike once, as one region that each of them calls; not done where gradients are
            recorded.
        pad_rows: round the number of rows that operators keep up to a multiple of this, so that fewer sizes occur. None
            for 1, or `PADDED` where ``mode`` asks for CUDA graphs, which are recorded once for each size. Only
            `opskip_compile.compile` knows the number before a graph runs.
        model_type: transformers' name of the whole model, for finding its preset: the graph of a decoder alone names
            only the decoder's. `opskip_compile.compile` sets it.
        dry_run: stop the forward where the decoder would start. Not an option of users: `opskip_compile.explain` gives
            each of its runs a number of its own, so that nothing that was captured before is taken for it.
        layer: ``(number, count)`` for a graph that holds one decoder layer alone, zero-based. `opskip_compile.compile`
            sets it for ``regional=True``.
        num_layers: layers of the decoder, where they are known: a graph that returns hidden states can't tell whether
            it holds all of them. `opskip_compile.compile` sets it.
        in_place: the model was compiled by `opskip_compile.compile`, which sets it: what a user is told is another.
        attention: transformers' name of the decoder's attention, for advice. `opskip_compile.compile` sets it.
        alone: this process may compile what the others of its group have compiled before: it counts FLOPs. They are not
            asked (`agreement`). `opskip_compile.compile` sets it.
        modalities: whose rows are named, where they are not looked for in the graph. `opskip_compile.compile` sets it.
        inductor: Inductor config patches (from ``mode`` and from every option that is an Inductor config key).
    """

    schedule: Schedule | None = None
    strict: bool = False
    dump: str | None = None
    lower: str = "inductor"
    share_rotary: bool = True
    causal: bool = True
    onednn: bool = True
    regions: bool = True
    pad_rows: int | None = None
    model_type: str | None = None
    dry_run: int = 0
    layer: tuple[int, int] | None = None
    num_layers: int | None = None
    in_place: bool = False
    attention: str | None = None
    alone: bool = False
    modalities: tuple[str, ...] | None = None
    inductor: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None = None, mode: str | None = None) -> Settings:
        """Check every option.

        Raises:
            OptionError: an unknown option (with the nearest known one) or a value of the wrong type.
            ScheduleError: a schedule that can't be read.
        """
        if options is not None and not isinstance(options, Mapping):
            raise OptionError(f"options: must be a dict, not {type(options).__name__}")
        options = dict(options or {})
        mode = options.pop("mode", mode)
        schedule = options.pop("schedule", None)
        model_type = options.pop("model_type", None)
        if not isinstance(model_type, str | None):
            raise OptionError(f"options.model_type: must be a name, not {model_type!r}")
        dry_run = options.pop("dry_run", 0)
        layer = options.pop("layer", None)
        if layer is not None and not _is_layer(layer):
            raise OptionError(f"options.layer: must be the number of a layer and their count, not {layer!r}")
        num_layers = options.pop("num_layers", None)
        if num_layers is not None and (type(num_layers) is not int or num_layers < 1):
            raise OptionError(f"options.num_layers: must be a number of layers, not {num_layers!r}")
        in_place, alone = options.pop("in_place", False), options.pop("alone", False)
        attention = options.pop("attention", None)
        if not isinstance(attention, str | None):
            raise OptionError(f"options.attention: must be a name, not {attention!r}")
        modalities = options.pop("modalities", None) if in_place else None
        pad_rows = options.pop("pad_rows", None)
        if pad_rows is not None and (type(pad_rows) is not int or pad_rows < 1):
            raise OptionError(f"options.pad_rows: must be a number of rows, 1 or more, not {pad_rows!r}")
        if pad_rows is not None and not in_place:
            raise OptionError(
                "options.pad_rows: needs opskip_compile.compile(model, options=...), and a model whose text decoder it "
                "finds: else the number of kept rows is not known before a graph runs"
            )
        lower, dump = options.pop("lower", "inductor"), options.pop("dump", None)
        flags = {name: options.pop(name, default) for name, default in FLAGS.items()}
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise OptionError(f"options.{name}: must be True or False, not {value!r}")
        if lower not in LOWERINGS:
            raise OptionError(f"options.lower: must be one of {', '.join(LOWERINGS)}, not {lower!r}")
        if dump is not None and not isinstance(dump, str | os.PathLike):
            raise OptionError(f"options.dump: must be a folder, not {dump!r}")
        return cls(
            schedule=None if schedule is None else Schedule.of(schedule),
            **flags,
            pad_rows=pad_rows,
            dump=None if dump is None else os.fspath(dump),
            lower=lower,
            model_type=model_type,
            dry_run=dry_run,
            layer=None if layer is None else (layer[0], layer[1]),
            num_layers=num_layers,
            in_place=bool(in_place),
            attention=attention,
            alone=bool(alone),
            modalities=None if modalities is None else check_modalities(modalities),
            inductor={**_mode_options(mode), **_inductor_options(options)},
        )

    @property
    def records_cuda_graphs(self) -> bool:
        """True if Inductor is asked to, as by ``mode="reduce-overhead"``."""
        return bool(self.inductor.get("triton.cudagraphs"))

    @property
    def rows_multiple(self) -> int:
        """Numbers of kept rows are rounded up to a multiple of this."""
        return self.pad_rows or (PADDED if self.records_cuda_graphs else 1)


def _is_layer(value: object) -> bool:
    pair = isinstance(value, tuple | list) and len(value) == 2 and all(type(part) is int for part in value)
    return pair and 0 <= value[0] < value[1]  # type: ignore[index]


def _mode_options(mode: object) -> dict[str, Any]:
    if mode is None:
        return {}
    try:
        return _compat.inductor_mode_options(str(mode))
    except RuntimeError as error:
        raise OptionError(f"options.mode: {error}") from None


def _inductor_options(options: Mapping[str, Any]) -> dict[str, Any]:
    known = frozenset(_compat.inductor_option_names())
    for name in options:
        if not isinstance(name, str) or name.replace("-", "_") not in known:
            own = ["schedule", *FLAGS, "pad_rows", "dump", "lower", "mode", "model_type", "layer", "num_layers"]
            near = difflib.get_close_matches(str(name), [*own, *sorted(known)], n=1, cutoff=0.0)
            raise OptionError(f"options.{name}: no such option; the nearest known one is {near[0]!r}")
    return {name.replace("-", "_"): value for name, value in options.items()}
