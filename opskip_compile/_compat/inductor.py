"""Inductor: how graphs are lowered, and what is asked about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from types import ModuleType
from typing import Any, cast

import torch
from torch import fx

from opskip_compile._compat import regions, scheduler


def inductor(gm: fx.GraphModule, inputs: Sequence[Any], config: dict[str, Any]) -> Callable[..., Any]:
    """Lower ``gm`` with Inductor under the given config patches.

    What mends Inductor for such graphs is on while it works on this one, its backward graph included, which it may
    lower much later; other graphs are lowered as ever.
    """
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    @wraps(compile_fx_inner)
    def mended(*args: Any, **kwargs: Any) -> Any:
        with scheduler.order_of_mutations, regions.remember_shapes:
            return compile_fx_inner(*args, **kwargs)

    with scheduler.order_of_mutations, regions.remember_shapes:
        compiled = compile_fx(gm, list(inputs), inner_compile=mended, config_patches=config or None)
    return cast(Callable[..., Any], compiled)


def inductor_cache() -> str:
    """The folder where Inductor keeps compiled code."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def lowering_sources() -> tuple[ModuleType, ...]:
    """The modules that mend Inductor: code that it made before one of them changed may be another."""
    return scheduler, regions


def allow_caching(graph: fx.Graph, functions: Iterable[Callable[..., Any]], version: str) -> dict[str, Any]:
    """Let AOTAutograd keep what it makes of a graph that calls ``functions`` of ours; returns Inductor config patches.

    Its cache takes functions of torch only, or such as are named with a version in Inductor's config, which is part of
    the cache key. It takes methods only of values with an example, of which it asks no more than that there is one.
    """
    for node in graph.nodes:
        if node.op == "call_method" and isinstance(node.args[0], fx.Node):
            node.args[0].meta.setdefault("example_value", None)
    option = "unsafe_marked_cacheable_functions"
    if option not in inductor_option_names():
        return {}
    return {option: {f"{f.__module__}.{f.__name__}": version for f in functions}}


def probe_vector_instructions() -> float:
    """Seconds until Inductor knows which vector instructions it can generate; it asks once for each cache folder."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    start = time.perf_counter()
    pick_vec_isa()
    return time.perf_counter() - start


def generated_kernels() -> int:
    """Kernels that Inductor has generated in this process, those of graphs out of its cache included."""
    from torch._inductor import metrics

    return int(metrics.generated_kernel_count)


def inductor_mode_options(mode: str) -> dict[str, Any]:
    """The Inductor config that a ``torch.compile`` mode stands for."""
    return dict(torch._inductor.list_mode_options(mode))


def inductor_option_names() -> list[str]:
    """Every Inductor config key."""
    return [str(name) for name in torch._inductor.list_options()]
