"""A GPU that is not there: what torch, Inductor and Triton are told of it where they ask a driver.

Everything here that is private to torch or Triton stands in this file. Fake tensors need no memory of a device. Three
things are asked of one all the same: its properties by Python (`pretended`), its properties by the code in C++ that
chooses an attention kernel (`again`), and a module of each kernel that is compiled, which is not loaded.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

_CAPABILITY, _PRELOADED = "OPSKIP_CARD_CAPABILITY", "OPSKIP_CARD"  # set in the environment of a process with the card
MAJOR, MINOR = map(int, os.environ.get(_CAPABILITY, "9.0").split("."))
TARGET = f"sm_{MAJOR}{MINOR}"
_PROPERTIES = {  # of an H200, whatever the capability
    "multi_processor_count": 132,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_block_optin": 227 << 10,
    "shared_memory_per_multiprocessor": 228 << 10,
    "total_memory": 141 << 30,
    "L2_cache_size": 50 << 20,
}
# Torch asks the CUDA runtime, which has no answer without a driver. Names that are defined earlier win.
_RUNTIME = """
#include <string.h>
#include "cuda_runtime_api.h"
#undef cudaGetDeviceProperties
cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  p->major = %d, p->minor = %d, p->multiProcessorCount = %d, p->warpSize = 32;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int device) {
  return cudaGetDeviceProperties(p, device);
}
"""


def missing() -> str:
    """What this machine lacks; empty if nothing."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: pip install torch=={torch.__version__.split('+')[0]}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, which comes with torch for CUDA: pip install triton"
    if torch.cuda.is_available() and _PRELOADED not in os.environ:
        return "a GPU is here, which needs no pretending: python -m benchmarks.gpu_check"
    return "" if _compiler() else "no C compiler is found (cc, gcc or clang)"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)


def _preloaded(capability: str, folder: Path) -> dict[str, str]:
    """The environment for a process that finds the pretended card, whose library is built in ``folder``."""
    import triton  # type: ignore[import-not-found,unused-ignore]

    headers = [*Path(torch.__file__).parents[1].glob("nvidia/*/include")]
    headers += [Path(triton.__file__).parent / "backends" / "nvidia" / "include"]
    source, library = folder / "card.c", folder / "card.so"
    source.write_text(
        _RUNTIME % (*map(int, capability.split(".")), _PROPERTIES["multi_processor_count"]), encoding="utf-8"
    )
    places = [f"-I{each}" for each in headers if (each / "cuda_runtime_api.h").exists()]
    compiler = _compiler()
    assert compiler is not None
    subprocess.run([compiler, "-shared", "-fPIC", "-w", *places, str(source), "-o", str(library)], check=True)
    before = os.environ.get("LD_PRELOAD")
    own = {"LD_PRELOAD": f"{library}:{before}" if before else str(library), _PRELOADED: "1", _CAPABILITY: capability}
    return {**os.environ, **own}


@dataclass
class Made:
    """What was made for one contender: sources of modules, cubins by kernel, and why CUDA graphs part a module."""

    sources: list[str] = field(default_factory=list)
    cubins: dict[str, int] = field(default_factory=dict)
    partings: list[str] = field(default_factory=list)


class Stopped(Exception):
    """The code is made; ends the forward that would run it."""


class _OnCPU(TorchDispatchMode):
    """Makes new tensors on the CPU, whatever device is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        return func(*args, **{**named, "device": torch.device("cpu")} if named.get("device") else named)


class _Driver:
    """Of Triton's: no more than Inductor asks."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget  # type: ignore[import-not-found,unused-ignore]

        return GPUTarget("cuda", 10 * MAJOR + MINOR, 32)

    def get_current_device(self) -> int:
        return 0


@contextmanager
def pretended(made: Made) -> Iterator[FakeTensorMode]:
    """Fake tensors on ``cuda`` can be made in the mode that this gives, and be compiled; ``made`` gets what is made."""
    import triton  # type: ignore[import-not-found,unused-ignore]
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config
    from torch._inductor.async_compile import CompiledTritonKernels
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch._inductor.scheduler import Scheduler

    properties = SimpleNamespace(name="pretended", major=MAJOR, minor=MINOR, **_PROPERTIES)
    parts, folds = Scheduler.should_partition, UniformValueConstantFolder._deduce_value

    def keep_cubins(kernel: Any) -> None:
        """In place of loading them: only a driver can."""
        name = kernel.inductor_meta.get("kernel_name", kernel.fn.__name__)
        made.cubins[name] = min(len(result.kernel.asm.get("cubin", b"")) for result in kernel.compile_results)

    def keep_reason(scheduler: Any, node: Any) -> str | None:
        reason: str | None = parts(scheduler, node)
        if reason and config.triton.cudagraphs:
            operation = getattr(node.node, "op_overload", None)
            made.partings.append(f"{reason} ({operation})" if operation else reason)
        return reason

    def deduce(folder: Any, node: torch.fx.Node) -> Any:
        """Constants are folded with values, which only a CPU has here."""
        with _OnCPU():
            return folds(folder, node)

    told: list[tuple[Any, str, Any]] = [
        (torch.cuda, "is_available", lambda: False),  # or fake tensors would make a context
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "get_device_properties", lambda device=None: properties),
        (torch.cuda, "get_device_capability", lambda device=None: (MAJOR, MINOR)),
        (torch.cuda, "current_device", lambda: 0),
        (CudaInterface, "is_available", staticmethod(lambda: True)),
        (CudaInterface, "current_device", staticmethod(lambda: 0)),
        (CudaInterface, "get_device_properties", staticmethod(lambda device=None: properties)),
        (CudaInterface, "is_bf16_supported", staticmethod(lambda including_emulation=False: True)),
        (CudaInterface.Worker, "get_device_properties", staticmethod(lambda device=None: properties)),
        (triton_helpers, "set_driver_to_gpu", lambda: None),
        (CachingAutotuner, "_make_launchers", keep_cubins),
        (CachingAutotuner, "_dynamic_scale_rblock", lambda kernel: None),  # asks what a loaded kernel occupies
        (UniformValueConstantFolder, "_deduce_value", deduce),
        (Scheduler, "should_partition", keep_reason),
        (GraphLowering, "save_output_code", staticmethod(made.sources.append)),
    ]
    settings = {
        "shape_padding": False,  # is measured on the device
        "use_static_cuda_launcher": False,
        "compile_threads": 1,  # processes of their own would not know of the card
        "force_disable_caches": True,  # code out of a cache is not made
    }
    triton.runtime.driver.set_active(_Driver())
    CompiledTritonKernels.cache_clear()  # what an earlier contender has compiled counts for this one, too
    with ExitStack() as stack:
        for where, name, value in told:
            stack.enter_context(mock.patch.object(where, name, value))
        stack.enter_context(config.patch(settings))
        yield FakeTensorMode(shape_env=ShapeEnv())


def lowering(lower: Callable[..., Any]) -> Callable[..., Any]:
    """Inductor's entry, given the graph's own fake inputs, as if they were real, and stopped before the code runs."""

    def lowered(gm: torch.fx.GraphModule, inputs: Any, *args: Any, **named: Any) -> Callable[..., Any]:
        examples = [node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder")]
        lower(gm, examples, *args, **named)

        def stop(*args: Any) -> Any:
            raise Stopped

        return stop

    return lowered


def on_card(value: Any, fake: FakeTensorMode) -> Any:
    """The same tensor on the card, without values."""
    if not isinstance(value, torch.Tensor):
        return value
    with fake:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


def put_on_card(model: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """A model whose weights and buffers are on the card from now on, without values."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(on_card(weight, fake), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = on_card(buffer, fake)
    return model


def again(capability: str) -> None:
    """Start this process again with the pretended card, if it has none yet."""
    if _PRELOADED not in os.environ:
        command = [sys.executable, "-m", "benchmarks.cuda_code", *sys.argv[1:]]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, env=_preloaded(capability, Path(folder)))
        raise SystemExit(done.returncode)
