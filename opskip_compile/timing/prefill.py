"""Prefill time and memory of one decoder: dense, with schedules, and with token dropping, in one process.

Every round runs each contender once, in turn; a speed-up is the median over the rounds of the ratio to a dense run in
the same round: to plain Inductor, and to the fastest dense contender, which may be eager transformers (in 16 bits, or
with thousands of rows, where a compiled decoder pays for its dense mask). The ideal is the ratio of FLOPs (DESIGN
section 6), and the realised share is measured / ideal.

Where `opskip` lets linear layers run in oneDNN, token dropping does, too, and there is a dense contender more that does
nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from opskip_compile import _compat
from opskip_compile.errors import OptionError
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.passes.tune.onednn import use_onednn
from opskip_compile.schedule.flops import count_flops
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.timing.decoders import Decoder
from opskip_compile.timing.dropping import Dropping
from opskip_compile.timing.peak_memory import peak_bytes
from opskip_compile.timing.time_by_kind import seconds_by_kind

if TYPE_CHECKING:
    from opskip_compile.output.progress import Step  # which needs rich

EAGER, INDUCTOR, ONEDNN = "eager", "Inductor", "Inductor, oneDNN"
BEFORE = 16  # text rows before the visual ones


@dataclass(frozen=True)
class PrefillTimes:
    """One contender. Seconds are those of the rounds; ``flops`` are those of one prefill, ``by_kind`` its seconds by
    what they were spent on, if that was asked for; ``fastest_seconds`` those of the dense contender ``fastest``, whose
    median is the lowest."""

    name: str
    kind: str  # "dense", "schedule" or "dropping"
    spec: str
    flops: int
    dense_flops: int
    seconds: tuple[float, ...]
    dense_seconds: tuple[float, ...]
    peak: int
    dense_peak: int
    fastest: str
    fastest_seconds: tuple[float, ...]
    by_kind: Mapping[str, float] = field(default_factory=dict)

    @property
    def cut(self) -> float:
        """Share of the dense FLOPs that is saved."""
        return 1 - self.flops / self.dense_flops

    @property
    def ideal(self) -> float:
        """The speed-up if time were FLOPs."""
        return self.dense_flops / self.flops

    @property
    def ratios(self) -> list[float]:
        """The speed-up of each round."""
        return [dense / each for dense, each in zip(self.dense_seconds, self.seconds, strict=True)]

    @property
    def measured(self) -> float:
        """The median speed-up."""
        return statistics.median(self.ratios)

    @property
    def to_fastest(self) -> float:
        """The median speed-up against the fastest dense contender."""
        return statistics.median(dense / each for dense, each in zip(self.fastest_seconds, self.seconds, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "spec": self.spec,
            "milliseconds": round(statistics.median(self.seconds) * 1e3, 3),
            "gflops": round(self.flops / 1e9, 3),
            "flops_cut": round(self.cut, 4),
            "ideal": round(self.ideal, 4),
            "measured": round(self.measured, 4),
            "spread": [round(min(self.ratios), 4), round(max(self.ratios), 4)],
            "realised": round(self.measured / self.ideal, 4),
            "fastest_dense": self.fastest,
            "to_fastest_dense": round(self.to_fastest, 4),
            "peak_mib": round(self.peak / 2**20, 2),
            "peak_to_inductor": round(self.peak / self.dense_peak, 4),
            **({"seconds_by_kind": {k: round(v, 5) for k, v in self.by_kind.items()}} if self.by_kind else {}),
        }


@dataclass(frozen=True)
class _TimedCall:
    name: str
    kind: str
    spec: str
    flops: int
    call: Callable[[], Any]


def run_prefill(
    decoder: Decoder,
    schedules: Mapping[str, Schedule],
    droppings: Mapping[str, Dropping],
    *,
    visual: int,
    text: int,
    rounds: int = 5,
    batch: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    without: Collection[str] = (),
    attention_mask: bool = True,
    lower: str = "inductor",
    profile: bool = False,
    step: Step = lambda what, done, total: None,
) -> list[PrefillTimes]:
    """Measure one decoder on one prompt of ``visual + text`` rows.

    Args:
        schedules, droppings: by the name that the row gets.
        batch: so many prompts alike at once; token dropping is for one.
        rounds: timed rounds, after one that compiles and one that warms up.
        without: options of the backend, each switched off in a contender more for every schedule.
        attention_mask: give the model a mask of ones, as every processor does. A compiled decoder can't know that
            nothing is padded, and builds the dense causal mask.
        lower: ``"eager"`` compiles nothing, and times are then no measure.
        profile: one more call of each, to see what its time is spent on (on a CPU).
        step: called with what is done now, and how many of how many steps are done.

    Raises:
        OptionError: a count that does not fit.
        RewriteError: an operator of a schedule stays full, so that the figure would not be the schedule's.
    """
    if min(visual, text, rounds, batch) < 1:
        given = f"{visual}, {text}, {rounds}, {batch}"
        raise OptionError(f"visual, text, rounds, batch: expected at least 1 of each, got {given}")
    if batch > 1 and droppings:
        raise OptionError(f"batch: token dropping is timed for one prompt, not for {batch}")
    if profile and torch.device(device).type != "cpu":
        raise OptionError(f"profile: for a CPU only, not {device}")
    torch.compiler.reset()
    model = decoder.build(device, dtype)
    with torch.no_grad(), _compat.recompile_limit(256):
        contenders = _contenders(
            model, decoder, schedules, droppings, visual, text, batch, without, attention_mask, lower
        )
        total = len(contenders) * (rounds + 3 + profile)
        done = 0

        def tick(what: str) -> None:
            nonlocal done
            step(what, done, total)
            done += 1

        for each in contenders:
            tick(f"compiling {each.name}")
            each.call()
        seconds: dict[str, list[float]] = {each.name: [] for each in contenders}
        for i in range(rounds + 1):
            for each in contenders:
                tick(f"round {i} of {rounds}" if i else "warming up")
                taken = _seconds(each.call, device)
                if i:
                    seconds[each.name].append(taken)
        peaks = {}
        for each in contenders:
            tick("peak memory")
            peaks[each.name] = peak_bytes(each.call, device)
        kinds: dict[str, dict[str, float]] = {}
        for each in contenders if profile else ():
            tick("what the time goes to")
            kinds[each.name] = seconds_by_kind(each.call)
    flops = {each.name: each.flops for each in contenders}
    dense = [each.name for each in contenders if each.kind == "dense"]
    fastest = min(dense, key=lambda name: statistics.median(seconds[name]))
    return [
        PrefillTimes(
            each.name,
            each.kind,
            each.spec,
            each.flops,
            flops[INDUCTOR],
            tuple(seconds[each.name]),
            tuple(seconds[INDUCTOR]),
            peaks[each.name],
            peaks[INDUCTOR],
            fastest,
            tuple(seconds[fastest]),
            kinds.get(each.name, {}),
        )
        for each in contenders
    ]


def _contenders(
    model: Any,
    decoder: Decoder,
    schedules: Mapping[str, Schedule],
    droppings: Mapping[str, Dropping],
    visual: int,
    text: int,
    batch: int,
    without: Collection[str],
    attention_mask: bool,
    lower: str,
) -> list[_TimedCall]:
    before = min(BEFORE, text - 1)
    first = next(model.parameters())
    hidden = torch.randn(batch, visual + text, decoder.geometry.hidden_size, device=first.device).to(first.dtype)
    mask = torch.zeros(batch, visual + text, dtype=torch.bool, device=first.device)
    mask[:, before : before + visual] = True
    places, others = (rows[0].nonzero().flatten() for rows in (mask, ~mask))
    dense = batch * count_flops(decoder.geometry, visual_tokens=visual, text_tokens=text).dense
    how = "eager" if lower == "eager" else "inductor"

    padding = torch.ones(batch, visual + text, dtype=torch.int64, device=first.device) if attention_mask else None

    in_onednn = first.device.type == "cpu" and first.dtype == torch.float32 and _compat.blas_is_slow()
    kernels: Any = partial(_in_onednn, lower) if in_onednn else how

    contenders = [
        _TimedCall(EAGER, "dense", "", dense, _bound(_dense, model, hidden, padding)),
        _TimedCall(
            INDUCTOR,
            "dense",
            "",
            dense,
            _bound(torch.compile(_dense, backend=how, dynamic=False), model, hidden, padding),
        ),
    ]
    if in_onednn:
        alike = torch.compile(_dense, backend=kernels, dynamic=False)
        contenders.append(_TimedCall(ONEDNN, "dense", "", dense, _bound(alike, model, hidden, padding)))
    for name, schedule in schedules.items():
        counted = count_flops(
            decoder.geometry, visual_tokens=visual, text_tokens=text, schedule=schedule, text_before=before
        )
        flops = batch * counted.skipped
        for off in ("", *without):
            options: Any = {"schedule": schedule, "strict": True, "lower": lower, **({off: False} if off else {})}
            compiled = torch.compile(_skipping, backend="opskip", options=options, dynamic=False)
            title = name + (f", {off} off" if off else "")
            call = _bound(compiled, model, hidden, padding, mask)
            contenders.append(_TimedCall(title, "schedule", schedule.to_spec(), flops, call))
    for name, dropping in droppings.items():
        forward: Callable[..., Any] = dropping.forward
        compiled = torch.compile(forward, backend=kernels, dynamic=False)
        call = _bound(compiled, model, hidden, places, others)
        spec = f"{dropping.share:.0%} of the visual rows leave before layer {dropping.layer}"
        contenders.append(_TimedCall(name, "dropping", spec, dropping.flops(decoder.geometry, visual, text), call))
    return contenders


def _in_onednn(lower: str, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A backend: the graph as it is, but for the kernels of its linear layers."""
    use_onednn(gm.graph, gm.graph)
    gm.recompile()
    return gm.forward if lower == "eager" else _compat.inductor(gm, inputs, {})


def _dense(model: Any, hidden: Tensor, padding: Tensor | None) -> Any:
    return model(inputs_embeds=hidden, attention_mask=padding, use_cache=True)


def _skipping(model: Any, hidden: Tensor, padding: Tensor | None, visual: Tensor) -> Any:
    return model(inputs_embeds=mark_visual(hidden, visual), attention_mask=padding, use_cache=True)


def _bound(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: function(*args)


def _seconds(call: Callable[[], Any], device: str) -> float:
    """Time of one call: on a GPU by its own events, on a CPU by the clock."""
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    event: Callable[..., Any] = torch.cuda.Event
    first, last = (event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def never_slower(rows: Sequence[PrefillTimes]) -> list[str]:
    """Names of the schedules whose median is below that of the fastest dense run."""
    return [row.name for row in rows if row.kind == "schedule" and row.cut > 0 and row.to_fastest < 1]
