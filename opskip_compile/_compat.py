"""Every private name of torch that this package touches, in one place.

Support window: torch 2.11 to 2.13. A new torch release is supported once this module has been read against it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import fx
from torch._dynamo.callback import callback_handler
from torch._dynamo.utils import get_metrics_context
from torch._higher_order_ops import utils as hop_utils
from torch._inductor.compile_fx import compile_fx
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor.dependencies import StarDep, WeakDep
from torch._inductor.scheduler import SchedulerNode
from torch._library.fake_impl import allocate_size
from torch._logging._internal import trace_structured
from torch._subclasses import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher
from torch.utils._ordered_set import OrderedSet
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Compiled = Callable[..., Any]


def inductor(gm: fx.GraphModule, inputs: Sequence[Any], config: dict[str, Any]) -> Compiled:
    """Lower ``gm`` with Inductor under the given config patches."""
    keep_order_of_mutations()
    remember_shapes_of_regions()
    return cast(Compiled, compile_fx(gm, list(inputs), config_patches=config or None))


def keep_order_of_mutations() -> None:
    """Mend Inductor for the CPU, which may run a reader before the scatter whose result it reads.

    Where its scheduler changes the loops of a node, it takes the node's dependencies from the new body. There a mutated
    buffer has its first name, so the reader no longer waits for the mutation; torch 2.11 also drops the order between
    an earlier reader and a mutation, which https://github.com/pytorch/pytorch/pull/177816 mended. Gradients of a
    selection are scatters: without this some came out wrong. Nothing else of the scheduler is changed.
    """
    change_loops = SchedulerNode.recompute_size_and_body
    if hasattr(change_loops, "opskip"):
        return

    def recompute_size_and_body(self: SchedulerNode, *args: Any, **kwargs: Any) -> None:
        order = [dep for dep in self.read_writes.reads if isinstance(dep, WeakDep | StarDep)]
        change_loops(self, *args, **kwargs)
        reads = self.read_writes.with_read(OrderedSet(order)) if order else self.read_writes
        self.set_read_writes(reads.rename(self.mutation_renames))

    recompute_size_and_body.opskip = True  # type: ignore[attr-defined]
    SchedulerNode.recompute_size_and_body = recompute_size_and_body  # type: ignore[method-assign]


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


def compile_seconds() -> dict[str, float]:
    """Seconds that this process has spent in each phase of compiling, as Dynamo counts them."""
    return {name: sum(seconds) for name, seconds in torch._dynamo.utils.compilation_time_metrics.items()}


def probe_vector_instructions() -> float:
    """Seconds until Inductor knows which vector instructions it can generate; it asks once for each cache folder."""
    start = time.perf_counter()
    pick_vec_isa()
    return time.perf_counter() - start


def generated_kernels() -> int:
    """Kernels that Inductor has generated in this process, those of graphs out of its cache included."""
    return int(torch._inductor.metrics.generated_kernel_count)


def inductor_mode_options(mode: str) -> dict[str, Any]:
    """The Inductor config that a ``torch.compile`` mode stands for."""
    return dict(torch._inductor.list_mode_options(mode))


def inductor_option_names() -> list[str]:
    """Every Inductor config key."""
    return [str(name) for name in torch._inductor.list_options()]


def same_size(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """True if two sizes are equal for every input the graph may see; adds no guard."""
    return bool(statically_known_true(a == b))


def known_at_least(size: int | torch.SymInt, minimum: int) -> bool:
    """True if a size is no smaller for every input the graph may see; adds no guard."""
    return bool(statically_known_true(size >= minimum))


def size_hint(size: int | torch.SymInt) -> int | str:
    """The size as it was when the graph was captured; its symbol where it is not known before the graph runs."""
    if isinstance(size, int):
        return size
    hint = size.node.hint if size.node.has_hint() else None
    return int(hint) if isinstance(hint, int) else str(size)


def pattern_matches(pattern: fx.Graph, graph: fx.Graph) -> Sequence[object]:
    """What the pattern matcher of ``torch.fx`` finds of ``pattern`` in ``graph``."""
    return SubgraphMatcher(pattern, match_output=False, match_placeholder=False, ignore_literals=True).match(graph)


@cache
def onednn_linear() -> Compiled | None:
    """oneDNN's ``linear`` for float32 on a CPU, with an operation that it may end with.

    None where torch was built without it.
    """
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if available else None
    return None if found is None else cast(Compiled, found.default)


@cache
def blas_is_slow() -> bool:
    """True where products of matrices run in MKL on an AMD processor with AVX-512: half the rate of oneDNN.

    ``torch.cpu`` does not name the vendor, but SSE4a is an extension that AMD's processors alone have.
    """
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    mkl: Callable[[], bool] = torch.backends.mkl.is_available
    return bool(mkl() and capabilities.get("sse4a") and capabilities.get("avx512_f"))


def is_fake(value: object) -> bool:
    """True for a tensor with a shape and no data."""
    return isinstance(value, FakeTensor)


invoke_region = torch.ops.higher_order.invoke_subgraph
REGION = "opskip_region_"  # how the identifier of a region of ours begins


def remember_shapes_of_regions() -> None:
    """Trace shapes through a region of ours once for each form of its operands, instead of in each of its calls.

    torch remembers them, too, unless a result has a size that is known when the graph runs, as kept rows have: then a
    deep decoder spends a tenth of its cold compile here. Only regions whose identifier begins with `REGION` are
    answered from memory, and only while the region's graph, the operands' forms and the symbols of sizes are the same.
    """
    fakes: dict[object, Callable[..., Any]] = getattr(hop_utils, "registered_hop_fake_fns", {})
    traced = fakes.get(invoke_region)
    if traced is None or hasattr(traced, "opskip"):
        return
    memory: WeakKeyDictionary[fx.GraphModule, dict[object, _Shapes]] = WeakKeyDictionary()

    def shapes_of_region(subgraph: Any, identifier: object, *operands: Any) -> Any:
        module = getattr(subgraph, "subgraph", subgraph)
        if not isinstance(module, fx.GraphModule) or not str(identifier).startswith(REGION):
            return traced(subgraph, identifier, *operands)
        nodes = tuple((node.name, node.target, f"{node.args} {node.kwargs}") for node in module.graph.nodes)
        forms = [_form(operand) for operand in operands]
        environments = {id(form[-1]): form[-1] for form in forms if form is not None}
        if None in forms or len(environments) != 1:
            return traced(subgraph, identifier, *operands)
        (environment,) = environments.values()
        known = memory.setdefault(module, {})
        key = type(subgraph), nodes, *(form[:-1] for form in forms if form is not None)
        if key not in known or known[key].environment is not environment:
            results = traced(subgraph, identifier, *operands)
            if not _are_new(results, operands):
                return results
            sizes = tuple((tuple(x.shape), x.stride(), x.dtype, x.device) for x in results)
            known[key] = _Shapes(environment, type(results), sizes)
            return results
        found = known[key]
        return found.kind(
            torch.empty_strided(size, stride, dtype=dtype, device=device) for size, stride, dtype, device in found.sizes
        )

    shapes_of_region.opskip = True  # type: ignore[attr-defined]
    fakes[invoke_region] = shapes_of_region


@dataclass(frozen=True)
class _Shapes:
    """Results of a region: the shape environment of their sizes' symbols, list or tuple, and each one's form."""

    environment: object
    kind: type
    sizes: tuple[tuple[Any, Any, torch.dtype, torch.device], ...]


def _form(operand: object) -> tuple[object, ...] | None:
    """All that a result's form can depend on, the shape environment last; None for all but fake tensors and sizes."""
    if isinstance(operand, torch.SymInt):
        return "size", operand.node.expr, operand.node.shape_env
    if not isinstance(operand, FakeTensor):
        return None
    sizes = tuple(n.node.expr if isinstance(n, torch.SymInt) else n for n in _numbers(operand))
    kind = type(operand), operand.dtype, operand.device, operand.requires_grad, operand.dim()
    return *kind, sizes, operand.fake_mode.shape_env


def _numbers(value: object) -> tuple[int | torch.SymInt, ...]:
    """The sizes and strides of a tensor and where it starts; a size alone."""
    if isinstance(value, torch.Tensor):
        return (*value.shape, *value.stride(), value.storage_offset())
    return (value,) if isinstance(value, torch.SymInt) else ()


def _symbols(values: Iterable[object]) -> set[object]:
    """All symbols in the sizes of ``values``."""
    numbers = (n for value in values for n in _numbers(value) if isinstance(n, torch.SymInt))
    return {symbol for n in numbers for symbol in n.node.expr.free_symbols}


def _are_new(results: Any, operands: Sequence[Any]) -> bool:
    """True for a list or tuple of plain fake tensors in memory of their own, each from its start.

    None of their sizes may be one that the region itself finds out: that one is another in every call.
    """
    if type(results) not in (list, tuple) or any(type(x) is not FakeTensor or x.requires_grad for x in results):
        return False
    made, given = ([memory_of(x) for x in values if isinstance(x, torch.Tensor)] for values in (results, operands))
    starts = all(statically_known_true(x.storage_offset() == 0) for x in results)
    return (
        starts and _symbols(results) <= _symbols(operands) and len({*made}) == len(made) and {*made}.isdisjoint(given)
    )


def memory_of(value: torch.Tensor) -> int:
    """A number that tensors have in common if they share memory; those without data have such memory, too."""
    return int(value.untyped_storage()._cdata)


def is_subclass(value: torch.Tensor) -> bool:
    """True for a tensor made of other tensors, which computes every operation in its own way."""
    return bool(is_traceable_wrapper_subclass(value))


def recompile_reason() -> str:
    """Why Dynamo compiles the present frame again (its first failed guard); empty for the first time."""
    reason = get_metrics_context()._metrics.get("recompile_reason")
    return str(reason) if reason else ""


def unlimited_recompiles() -> Any:
    """A context in which Dynamo never gives up on a function for being compiled too often."""
    return torch._dynamo.config.patch(recompile_limit=2**30, accumulated_recompile_limit=2**30)


def set_apart(tensor: torch.Tensor) -> None:
    """Keep ``tensor`` out of code that Dynamo compiled for other tensors of its shape.

    Dynamo guards on the dimensions that a user has marked as dynamic: code for a tensor without marks does not fit one
    with a mark; the other way round it does. The dimension that is marked here does not exist, so no size is dynamic.
    """
    marked: set[int] = getattr(tensor, "_dynamo_dynamic_indices", set())
    tensor._dynamo_dynamic_indices = {*marked, tensor.dim()}  # type: ignore[attr-defined]
    tensor._has_dynamo_dim_marking = True  # type: ignore[attr-defined]


def add_tensor_placeholder(graph: fx.Graph, name: str, example: torch.Tensor) -> fx.Node:
    """A new last input of a Dynamo graph; AOTAutograd wants a source, and None means 'not from user code'."""
    last = list(graph.find_nodes(op="placeholder"))[-1]
    with graph.inserting_after(last):
        node = graph.placeholder(name)
    node.meta["example_value"] = example
    node._dynamo_source = None
    return node


def fake_mask_like(hidden: torch.Tensor) -> torch.Tensor:
    """A fake bool ``(batch, sequence)`` with the symbolic sizes of the fake ``hidden`` ``(batch, sequence, width)``."""
    with hidden.fake_mode:  # type: ignore[attr-defined]
        return torch.empty(hidden.shape[:2], dtype=torch.bool, device=hidden.device)


def emit_artifact(name: str, payload: Callable[[], str]) -> None:
    """One structured trace artefact; tlparse lists it under the current compile."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "string"},
        payload_fn=payload,
    )


def on_compile_start(callback: Callable[[], None]) -> None:
    """Run ``callback`` whenever Dynamo starts to compile, until ``torch._dynamo.reset`` forgets it."""
    handlers = callback_handler.start_callbacks
    if not any(getattr(known, "opskip", None) is callback for known in handlers):

        def start(args: object) -> None:
            callback()

        start.opskip = callback  # type: ignore[attr-defined]
        callback_handler.register_start_callback(start)


def unbacked_size(minimum: int) -> torch.SymInt | int:
    """A size that is known when the graph runs, for the fake implementation of a custom op.

    ``torch.library.get_ctx().new_dynamic_size`` refuses unless ``capture_dynamic_output_shape_ops`` is set, and that
    option is read when Dynamo starts a frame, turns graph breaks of vision towers into errors and is not ours to set.
    """
    context = torch.library.get_ctx()
    shape_env = context._shape_env
    if shape_env is None:
        return context.new_dynamic_size(min=minimum)
    return allocate_size(shape_env, min_val=minimum)  # type: ignore[no-untyped-call, no-any-return]
