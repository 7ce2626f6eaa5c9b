"""Time of compiling: capture, our passes, AOTAutograd and Inductor, with empty and with full caches.

Every figure comes from a process of its own, since Dynamo and Inductor keep state: one with an empty cache folder
(cold), then one with the same folder (warm). Dense and opskip take turns. The first thing that Inductor does with an
empty folder is to probe which vector instructions its C++ compiler has: seconds that depend on no model, and a part of
their own here.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from opskip_compile.errors import OpSkipError
from opskip_compile.output.progress import Step
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.timing.decoders import DECODERS

DENSE = "dense"
PROBE = "probe"
PARTS = (PROBE, "capture", "passes", "AOTAutograd", "Inductor")


@dataclass(frozen=True)
class Start:
    """One first call: seconds of its parts, each pass of ours, nodes of the captured graph, kernels of Inductor."""

    contender: str
    layers: int
    warm: bool
    parts: Mapping[str, float]
    passes: Mapping[str, float]
    nodes: int
    kernels: int

    @property
    def seconds(self) -> float:
        """All parts."""
        return sum(self.parts.values())

    @property
    def own_seconds(self) -> float:
        """All parts but the probe of the machine."""
        return self.seconds - self.parts[PROBE]


def measure_starts(
    model: str,
    schedules: Mapping[int, Schedule],
    *,
    visual: int,
    text: int,
    rounds: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
    attention_mask: bool = True,
    lower: str = "inductor",
    step: Step = lambda what, done, total: None,
) -> list[Start]:
    """The median first call of dense and opskip at each depth, cold and warm.

    Args:
        model: a name of `DECODERS`.
        schedules: layers to keep -> what to skip in them.
        rounds: processes for each figure; the median of each part is taken.
        attention_mask: give the model a mask of ones, as every processor does; dense code builds the causal mask of it.
        lower: ``"eager"`` leaves Inductor out.

    Raises:
        OpSkipError: a process failed; holds the end of what it said.
    """
    medians: list[Start] = []
    total, done = len(schedules) * rounds * 4, 0
    for layers, schedule in schedules.items():
        job = {"model": model, "layers": layers, "visual": visual, "text": text, "device": device, "dtype": dtype}
        job |= {"lower": lower, "attention_mask": attention_mask, "schedule": schedule.to_dict()}
        runs: dict[tuple[str, bool], list[Start]] = {}
        for _ in range(rounds):
            for contender in (DENSE, schedule.to_spec()):
                with tempfile.TemporaryDirectory() as cache:
                    for warm in (False, True):
                        step(f"{layers} layers, {'warm' if warm else 'cold'}, {contender}", done, total)
                        runs.setdefault((contender, warm), []).append(_in_a_process(job, contender, warm, cache))
                        done += 1
        medians += [_median(starts) for starts in runs.values()]
    return medians


def _median(starts: Sequence[Start]) -> Start:
    def middle(field: str) -> dict[str, float]:
        return {name: statistics.median(getattr(s, field)[name] for s in starts) for name in getattr(starts[0], field)}

    first = starts[0]
    return Start(
        first.contender, first.layers, first.warm, middle("parts"), middle("passes"), first.nodes, first.kernels
    )


def _in_a_process(job: Mapping[str, Any], contender: str, warm: bool, cache: str) -> Start:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-m", __name__, json.dumps({**job, "contender": contender})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise OpSkipError(f"bench compile: {contender} with {job['layers']} layers failed: {said}")
    return Start(**{**json.loads(done.stdout.splitlines()[-1]), "warm": warm})


def first_call(job: Mapping[str, Any]) -> Start:
    """Compile one decoder in this process and call it; for a process that has compiled nothing yet."""
    import torch

    from opskip_compile import _compat
    from opskip_compile.backend.reports import REPORTS
    from opskip_compile.passes.runtime import mark_visual

    decoder = DECODERS[job["model"]].cut(job["layers"])
    model = decoder.build(job["device"], getattr(torch, job["dtype"]))
    rows = job["visual"] + job["text"]
    hidden = torch.randn(1, rows, decoder.geometry.hidden_size).to(job["device"], getattr(torch, job["dtype"]))
    visual = torch.zeros(1, rows, dtype=torch.bool, device=job["device"])
    visual[:, : job["visual"]] = True
    padding = torch.ones(1, rows, dtype=torch.int64, device=job["device"]) if job["attention_mask"] else None
    dense = job["contender"] == DENSE

    def forward() -> Any:
        embeds = hidden if dense else mark_visual(hidden, visual)
        return model(inputs_embeds=embeds, attention_mask=padding, use_cache=True)

    options: Any = {"schedule": Schedule.from_dict(job["schedule"]), "strict": True, "lower": job["lower"]}
    if dense:
        compiled = torch.compile(forward, backend="inductor" if job["lower"] == "inductor" else "eager")
    else:
        compiled = torch.compile(forward, backend="opskip", options=options)
    probe = _compat.probe_vector_instructions() if job["lower"] == "inductor" else 0.0
    with torch.no_grad():
        compiled()
    spent = _compat.compile_seconds()
    backend = spent.get("OutputGraph.call_user_compiler", 0.0)
    inductor = spent.get("compile_fx_inner", 0.0) + spent.get("AOTAutogradCache.inductor_load", 0.0)
    reports = [report for report in REPORTS.all() if report.rewritten]
    if not dense and not reports:
        raise OpSkipError(f"nothing was rewritten: {[report.reason for report in REPORTS.all()]}")
    passes = {done.name: done.milliseconds / 1e3 for report in reports for done in report.passes}
    in_passes = sum(passes.values())
    capture = spent["_compile.compile_inner"] - backend
    parts = (probe, capture, in_passes, backend - in_passes - inductor, inductor)
    return Start(
        job["contender"],
        job["layers"],
        False,
        dict(zip(PARTS, parts, strict=True)),
        passes,
        max((report.nodes_before for report in reports), default=0),
        _compat.generated_kernels(),
    )


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(first_call(json.loads(sys.argv[1])))))
    except Exception as error:
        cause = getattr(error, "inner_exception", error)
        sys.exit(" ".join(f"{type(cause).__name__}: {cause}".split()))
