"""What has to be tried: whether Inductor compiles here, and whether a small model skips and is right."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator

import torch

from opskip_compile import _compat
from opskip_compile.api import compile as compile_model
from opskip_compile.api import decompiled, last_report
from opskip_compile.doctor.finding import Finding
from opskip_compile.errors import OptionError, in_one_line
from opskip_compile.models.oracle import oracle
from opskip_compile.models.tiny import FAMILIES, visual_mask
from opskip_compile.schedule.schedule import Schedule

FAMILY, LAYERS, SPEC = "llava", 2, "silent:1 attend:0"
BOUND = 1e-4  # float32 of either side, of logits around 1


def trials(device: str | None = None) -> Iterator[Finding]:
    """Try both on ``device``; None for a GPU where there is one.

    Raises:
        OptionError: there is no such device here.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=device).item()
    except Exception as error:
        raise OptionError(f"device: nothing can be computed on {device!r}: {in_one_line(error)}") from None
    compiles = _tried("Inductor", lambda: _compiles(device))
    yield compiles
    if compiles.fine:
        yield _tried("a small LLaVA", lambda: _skips(device))


def _tried(name: str, trial: Callable[[], Finding]) -> Finding:
    try:
        return trial()
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        advice = "a C++ compiler is needed on a CPU (g++ or clang), Triton on a GPU; TORCH_LOGS=+inductor tells more"
        return Finding("trials", name, f"{type(error).__name__}: {lines[0].strip()}", False, advice)


def _compiles(device: str) -> Finding:
    """One function, compiled anew."""
    scale = time.time()  # no cache has code for it

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x * scale).sin().sum(0)

    x, start = torch.ones(16, 16, device=device), time.perf_counter()
    off = _compat.why_dynamo_is_off()
    if off:
        return Finding("trials", "Inductor", off, False, "switch torch.compile on again")
    found = torch.compile(function)(x)
    seconds = time.perf_counter() - start
    fine = bool(torch.allclose(found, function(x), atol=1e-4))
    words = f"compiles on {device}, {seconds:.1f} s for a small function"
    return Finding("trials", "Inductor", words if fine else f"gives other numbers on {device}", fine)


def _skips(device: str) -> Finding:
    """A prompt with an image through a model with random weights, against the definition of skipping."""
    family, start = FAMILIES[FAMILY], time.perf_counter()
    model = family.build(LAYERS).to(device)
    inputs = {name: value.to(device) for name, value in family.inputs().items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with decompiled(model), oracle(model, Schedule.of(SPEC), visual_mask(inputs)):
            want = model(**inputs).logits
        compile_model(model, SPEC)
        error = float((model(**inputs).logits - want).abs().max())
    report, seconds = last_report(), time.perf_counter() - start
    fine = error <= BOUND and len(report.skipped) == 3
    words = f"{len(report.skipped)} of 3 operators skipped, {error:.0e} from the oracle, {seconds:.0f} s"
    return Finding("trials", "a small LLaVA", words, fine, "" if fine else report.reason or "please report this")
