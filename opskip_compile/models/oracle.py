"""The oracle: the slow, plain definition of skipping, run eagerly by hooks on the model's own modules.

Every operator is computed for every row, and then the visual rows of a skipped one are dropped before they reach
the residual stream. It shares no code with the compiler, so that the compiler can be checked against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile._compat import CACHE_ARGUMENTS, is_split
from opskip_compile.errors import OpSkipError
from opskip_compile.models.critical import AttentionWatch, Watch
from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.schedule import Schedule

# Names of the modules whose output is added to the residual stream, the last one first: some decoders have a norm
# after the operator. Layers of hybrid decoders mix rows by a recurrence or a convolution instead of an attention.
_BRANCHES = {
    "attention": ("self_attn", "attention", "attn", "self_attention", "linear_attn", "conv", "short_conv", "mamba"),
    "ffn": ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn", "fc2"),
}
# Modules whose output is added to that of the one above before it reaches the residual stream.
_BESIDE = {"attention": (), "ffn": ("experts", "shared_mlp", "share_expert")}


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a transformers model, or of its text decoder: the one list that has attentions.

    Raises:
        OpSkipError: the model has no list of layers, or several of them.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    layers = getattr(decoder, "layers", None)
    if isinstance(layers, nn.ModuleList):
        return layers
    lists = [
        module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
        and name.rsplit(".", 1)[-1] == "layers"
        and any(child in _BRANCHES["attention"] for child, _ in module[0].named_children())
        and not any(word in name for word in ("vision", "visual", "vq", "audio", "encoder", "former", "perceiver"))
    ]
    if len(lists) != 1:
        raise OpSkipError(f"oracle: {type(model).__name__} has {len(lists)} lists named 'layers' in its decoder, not 1")
    return lists[0]


@contextmanager
def oracle(
    model: nn.Module,
    schedule: Schedule,
    visual_mask: Tensor | Callable[[Mapping[str, Any]], Tensor | None],
    *,
    watch: Watch | None = None,
) -> Iterator[nn.Module]:
    """Run ``model`` under the definition of DESIGN section 2.

    Args:
        model: a transformers model, changed by hooks until the block ends.
        schedule: which operators to skip.
        visual_mask: bool ``(batch, sequence)`` of the prefill. Where several forwards have different visual rows (a
            second turn with an image of its own, a prefill in chunks, beams): what gives the mask of a forward from
            its keyword inputs, or None for a forward without visual rows. A forward with another sequence length
            (a decode step) runs dense.
        watch: what tells the critical rows; if not given, plain code that computes every attention once more.

    Raises:
        OpSkipError: a decoder layer without a module for the operator; or keep shares, and a model that is split among
            processes.
        ScheduleError: the schedule does not fit the number of layers.
    """
    layers = decoder_layers(model)
    now: list[Tensor | None] = [visual_mask if isinstance(visual_mask, Tensor) else None]
    handles = []
    states = schedule.resolve(len(layers))
    keeps = any(left_out.chooses for each in states for left_out in (each.attention, each.ffn) if left_out)
    if watch is None and keeps:
        if is_split(model):
            raise OpSkipError("oracle: critical rows are told by all heads, and each process has a part of the model")
        watch = AttentionWatch(schedule.chooser)
    try:
        if not isinstance(visual_mask, Tensor):
            find = visual_mask

            def before(module: nn.Module, args: object, inputs: dict[str, Any]) -> None:
                now[0] = find(inputs)

            handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
        for i, (layer, state) in enumerate(zip(layers, states, strict=True)):
            if watch is not None:
                handles += _watched(layer, i, watch, now)
            for kind, left_out in (("attention", state.attention), ("ffn", state.ffn)):
                if left_out is not None:
                    hook = _drop(now, left_out, kind, watch)
                    handles += [part.register_forward_hook(hook) for part in branch_modules(layer, kind)]
        with watch or nullcontext():
            yield model
    finally:
        for handle in handles:
            handle.remove()


def _watched(layer: nn.Module, number: int, watch: Watch, now: list[Tensor | None]) -> list[Any]:
    """Tell the watch when a layer runs, in a forward that has visual rows."""

    def begin(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = named.get("hidden_states", args[0] if args else None)
        fits = now[0] is not None and isinstance(hidden, Tensor) and hidden.shape[:2] == now[0].shape
        if number == 0 and isinstance(hidden, Tensor):
            watch.enter(hidden)
        watch.begin(number, now[0] if fits else None, _written_from(named, number))

    def end(module: nn.Module, args: object, output: object) -> None:
        watch.end()

    return [
        layer.register_forward_pre_hook(begin, with_kwargs=True),
        layer.register_forward_hook(end, always_call=True),
    ]


def _written_from(named: Mapping[str, Any], layer: int) -> int | None:
    """Where the keys of the rows begin in a layer's cache of fixed size; None where they come after all others."""
    cache = next((named[name] for name in CACHE_ARGUMENTS if named.get(name) is not None), None)
    layers = getattr(cache, "layers", [])
    if cache is None or layer >= len(layers) or not layers[layer].is_compileable:
        return None
    try:
        return int(cache.get_seq_length(layer))
    except ValueError:  # a recurrence, or keys of another layer
        return None


def _drop(now: list[Tensor | None], rows: LeftOut, kind: str, watch: Watch | None) -> Any:
    def hook(module: nn.Module, args: object, output: Any) -> Any:
        left_out = now[0]
        if left_out is None:
            return output
        if rows.rows == "through_visual":
            left_out = left_out.flip(1).cumsum(1).flip(1) > 0
        if rows.chooses and watch is not None:
            left_out = watch.without_critical(left_out, kind, rows)
        first = output[0] if isinstance(output, tuple) else output
        flat = first.dim() == 2 and first.shape[0] == left_out.numel()  # batch and sequence in one dimension
        if not flat and first.shape[:2] != left_out.shape:
            return output
        left_out = left_out.reshape(-1) if flat else left_out
        kept = torch.where(left_out[..., None].to(first.device), torch.zeros_like(first), first)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    return hook


def branch_modules(layer: nn.Module, kind: str) -> list[nn.Module]:
    """The modules of a decoder layer whose outputs, added up, are the update of this operator.

    Raises:
        OpSkipError: the layer has no module under a name that is known.
    """
    children = dict(layer.named_children())
    for name in _BRANCHES[kind]:
        if name in children:
            return [children[part] for part in (name, *_BESIDE[kind]) if part in children]
    raise OpSkipError(f"oracle: {type(layer).__name__} has no module for its {kind}, only {', '.join(children)}")
