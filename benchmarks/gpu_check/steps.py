"""The steps of the check, in their order: what matters most comes first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

import opskip_compile as opskip
from benchmarks.row_counts import forward, rooms_for
from opskip_compile.models.tiny import FAMILIES, visual_mask
from opskip_compile.output.environment import environment as facts
from opskip_compile.passes.levels import taken
from opskip_compile.passes.row_counts import RowCounts
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.schedule.chooser import BUCKETS, Chooser, deepest
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.timing.decoders import DECODERS, Decoder, thinned
from opskip_compile.timing.prefill import BEFORE, run_prefill

TEXT = 64
FEWER = 12  # layers of all but the first measurement: Inductor takes long for 36
SKIP = "silent:1,3 attend:0 transform:2"  # of four layers, for correctness
MAIN = {"/20": "qwen3-vl-8b/20", "all silent": "silent:all"}
QUARTER = "silent@keep=0.25:all"
LEVELS = tuple(map(Schedule.of, ("none", "attend@keep=0.5:all", QUARTER)))
# It holds every level for safe, and takes the deepest: to be compared with `QUARTER`, which chooses none.
CHOOSER = Chooser(((0.0,) * 2 * BUCKETS,) * len(LEVELS), (0.0,) * len(LEVELS), deepest(len(LEVELS), 0.0), 0.0)
OTHERS: Sequence[Mapping[str, str | Schedule]] = (
    {"/12": "qwen3-vl-8b/12", "/36": "qwen3-vl-8b/36"},
    {"all FFN": "attend:all", "all attention": "transform:all", "none": "none"},
    {"a quarter kept": QUARTER, "levels": Schedule(levels=LEVELS, chooser=CHOOSER)},
)
Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Setting:
    """Where the check runs. On a CPU all is small: what is tried there is the script."""

    device: str
    quick: bool
    lower: str

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def decoder(self) -> Decoder:
        small = Decoder("a small one", "Qwen3VLText", Geometry(2, 64, 96, 4, 2, 16))
        return DECODERS["qwen3-vl-8b"] if self.on_gpu else small

    def to_dict(self) -> dict[str, Any]:
        """For a file of figures."""
        return {**asdict(self), "environment": facts(self.device, "bfloat16"), "decoder": self.decoder.title}


def environment(setting: Setting, keep: Keep) -> None:
    """device and versions"""
    if setting.on_gpu:
        known = torch.cuda.get_device_properties(setting.device)
        keep({"device": known.name, "GiB": round(known.total_memory / 2**30, 1), "cuda": str(torch.version.cuda)})
    keep(facts(setting.device, "bfloat16"))


def correctness(setting: Setting, keep: Keep) -> None:
    """four families in 16 bits against the float32 oracle"""
    schedule = Schedule.of(SKIP)
    for name in ("qwen3_vl", "llava", "internvl", "qwen2_5_vl"):
        family = FAMILIES[name]
        model, inputs = family.build(4).to(setting.device), _on(family.inputs(), setting.device)
        with torch.no_grad():
            dense = model(**inputs).logits
            with opskip.oracle(model, schedule, visual_mask(inputs)):
                wanted = model(**inputs).logits
        for dtype in (torch.bfloat16, torch.float16):
            given = _on(inputs, setting.device, dtype)
            with torch.no_grad():
                usual = _error(family.build(4, dtype).to(setting.device)(**given).logits, dense)
            for lower in dict.fromkeys(("eager", setting.lower)):
                torch.compiler.reset()
                got = family.build(4, dtype).to(setting.device)
                opskip.compile(got, SKIP, options={"lower": lower, "strict": True})
                with torch.no_grad():
                    error = _error(got(**given).logits, wanted)
                wrong = not error <= 2 * usual or not opskip.last_report().skipped  # so written, NaN is wrong
                figures = {"error": f"{error:.1e}", "the dense model's": f"{usual:.1e}", "wrong": wrong}
                keep({"family": name, "dtype": str(dtype).removeprefix("torch."), "lower": lower, **figures})


def prefill(setting: Setting, keep: Keep) -> None:
    """prefill of one prompt, with compile time and peak memory"""
    sizes = (1024, 4096, 576, 16384) if setting.on_gpu else (64,)
    _measure(setting, keep, setting.decoder, sizes[0], MAIN)
    fewer = _cut(setting.decoder)
    for visual in () if setting.quick else sizes[1:]:
        _measure(setting, keep, fewer, visual, MAIN)
    quick = () if setting.on_gpu else OTHERS[-1:]  # a try on a CPU sees levels, too
    for group in quick if setting.quick else OTHERS:
        for visual in sizes[:2]:
            _measure(setting, keep, fewer, visual, group)


def batches(setting: Setting, keep: Keep) -> None:
    """prefill of several prompts at once"""
    for batch in (4, 16)[: 1 if setting.quick else 2]:
        _measure(setting, keep, _cut(setting.decoder), 1024 if setting.on_gpu else 64, {"/20": MAIN["/20"]}, batch)


def graphs(setting: Setting, keep: Keep) -> None:
    """rows counted before the call, and CUDA graphs: two prompts of one length, each against the oracle"""
    visual = 1024 if setting.on_gpu else 64
    decoder = _cut(setting.decoder)
    model = decoder.build(setting.device, torch.bfloat16)
    schedule = thinned(Schedule.of(MAIN["/20"]), decoder.geometry.num_layers)
    prompts = [_prompt(setting, decoder, rows, visual + TEXT) for rows in (visual, visual - 9)]
    skips: dict[str, Any] = {"backend": "opskip", "options": {"schedule": schedule, "lower": setting.lower}}
    plain: dict[str, Any] = {"backend": setting.lower}
    recorded: dict[str, Any] = {"mode": "reduce-overhead"} if setting.on_gpu and setting.lower == "inductor" else plain
    if "mode" in recorded:
        recorded_skips = {**skips, "options": {**skips["options"], "mode": "reduce-overhead"}}
    else:
        recorded_skips = skips
    contenders: dict[str, tuple[int | None, dict[str, Any]]] = {
        "dense": (None, plain),
        "dense, CUDA graphs": (None, recorded),
        "found by the graph": (0, skips),
        "counted": (1, skips),
        "counted, multiples of 64, CUDA graphs": (64, recorded_skips),
    }
    wanted: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    with torch.no_grad():
        for embeds, mask in prompts:
            plainly = partial(model, inputs_embeds=embeds, use_cache=False)
            wanted[False].append(plainly().last_hidden_state)
            with opskip.oracle(model, schedule, mask):
                wanted[True].append(plainly().last_hidden_state)
    for name, (multiple, how) in contenders.items():
        torch.compiler.reset()
        counts = RowCounts.of(schedule, multiple or 1)
        call = torch.compile(forward(model, counts.names, skip=multiple is not None), dynamic=False, **how)
        inputs = [(embeds, mask, rooms_for(counts, mask) if multiple else ()) for embeds, mask in prompts]
        with torch.no_grad():
            got = [[call(*one).clone() for one in inputs] for _ in range(3)][-1]
            right = wanted[multiple is not None]
            error = max(_error(one, other.float()) for one, other in zip(got, right, strict=True))
            seconds = statistics.median(_timed(partial(call, *inputs[i % 2]), setting) for i in range(6))
        wrong = not error <= 0.05  # of the largest number: two roundings to bfloat16, layer after layer
        keep({"contender": name, "ms": round(seconds * 1e3, 3), "error": f"{error:.1e}", "wrong": wrong})


def profile(setting: Setting, keep: Keep) -> None:
    """where the time of one call goes"""
    visual = 1024 if setting.on_gpu else 64
    decoder = _cut(setting.decoder)
    model = decoder.build(setting.device, torch.bfloat16)
    hidden, mask = _prompt(setting, decoder, visual, visual + TEXT)
    padding = torch.ones(mask.shape, dtype=torch.int64, device=setting.device)
    schedule = thinned(Schedule.of(MAIN["/20"]), decoder.geometry.num_layers)

    def run(model: nn.Module, schedule: Schedule | None) -> Any:
        embedded = hidden if schedule is None else mark_visual(hidden, mask)
        return model(inputs_embeds=embedded, attention_mask=padding, use_cache=True)

    how: dict[str, Any] = {"backend": "opskip", "options": {"schedule": schedule, "lower": setting.lower}}
    plain = {"backend": setting.lower}
    for name, asked, one in (("dense", None, plain), ("/20", schedule, how)):
        compiled = torch.compile(run, dynamic=False, **one)
        with torch.no_grad():
            for _ in range(3):
                compiled(model, asked)
            keep({"contender": name, **_profiled(partial(compiled, model, asked), setting)})


@dataclass(frozen=True)
class Step:
    """One step, and its time in seconds."""

    run: Callable[[Setting, Keep], None]
    seconds: float
    quick_seconds: float


STEPS = {
    "environment": Step(environment, 30, 30),
    "correctness": Step(correctness, 120, 60),
    "prefill": Step(prefill, 240, 80),
    "profile": Step(profile, 90, 40),
    "graphs": Step(graphs, 90, 40),
    "batches": Step(batches, 90, 40),
}


def _on(inputs: Mapping[str, Any], device: str, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """On the device; numbers with a point in ``dtype``."""
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}


def _error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference in parts of the largest number."""
    return float((got.float() - wanted).abs().max() / wanted.abs().max())


def _prompt(setting: Setting, decoder: Decoder, visual: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of one prompt and its visual rows."""
    width = decoder.geometry.hidden_size
    hidden = torch.randn(1, rows, width, device=setting.device, dtype=torch.bfloat16)
    mask = torch.zeros(1, rows, dtype=torch.bool, device=setting.device)
    mask[:, BEFORE : BEFORE + visual] = True
    return hidden, mask


def _timed(call: Callable[[], Any], setting: Setting) -> float:
    start = time.perf_counter()
    call()
    if setting.on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _cut(decoder: Decoder) -> Decoder:
    return decoder.cut(min(FEWER, decoder.geometry.num_layers))


def _measure(
    setting: Setting, keep: Keep, decoder: Decoder, visual: int, wanted: Mapping[str, str | Schedule], batch: int = 1
) -> None:
    layers = decoder.geometry.num_layers
    began: list[tuple[str, float]] = []
    schedules = {name: thinned(Schedule.of(spec), layers) for name, spec in wanted.items()}
    rows = run_prefill(
        decoder,
        schedules,
        {},
        visual=visual,
        text=TEXT,
        batch=batch,
        rounds=3 if setting.quick else 5,
        device=setting.device,
        dtype=torch.bfloat16,
        lower=setting.lower,
        step=lambda what, done, total: began.append((what, time.perf_counter())),
    )
    compiling = dict(_durations(began))
    for row in rows:
        more: dict[str, Any] = {
            "layers": layers,
            "visual": visual,
            "batch": batch,
            "first_call_s": round(compiling.get(row.name, 0.0), 1),
        }
        schedule = schedules.get(row.name)
        if schedule is not None and schedule.levels:
            levels = taken(schedule.digest)
            more |= {"levels": list(levels), "wrong": levels != (len(schedule.levels) - 1,) * batch}
        keep({**row.to_dict(), **more})


def _durations(began: list[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Seconds of each first call, from when what began."""
    for (what, start), (_, end) in pairwise(began):
        if what.startswith("compiling "):
            yield what.removeprefix("compiling "), end - start


def _profiled(call: Callable[[], Any], setting: Setting) -> dict[str, Any]:
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if setting.on_gpu else [])]
    with torch.profiler.profile(activities=kinds) as profiler:
        start = time.perf_counter()
        call()
        if setting.on_gpu:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    events = profiler.key_averages()
    own = {e.key: e.self_cpu_time_total / 1e3 for e in events}
    if setting.on_gpu:  # kernels alone: what launches them has their time, too
        kernels = (e for e in events if e.device_type == torch.autograd.DeviceType.CUDA)
        own = {e.key: e.self_device_time_total / 1e3 for e in kernels}
    busy = sum(own.values())
    waits = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    top = sorted(own.items(), key=lambda item: -item[1])[:15]
    return {
        "wall_ms": round(wall * 1e3, 3),
        "busy_ms": round(busy, 3),
        "idle_ms": round(wall * 1e3 - busy, 3),
        "waits": sum(e.count for e in events if e.key in waits),
        "top": [[name[:100], round(ms, 3)] for name, ms in top],
    }
