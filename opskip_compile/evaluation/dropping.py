"""Token dropping on a whole model of transformers, for its answers: what `timing.dropping` is for the clock.

The rows that leave are hidden from all rows that stay, from the layer on at which they leave, and from every decode
step. What the rows that stay compute is then what they compute in the shorter sequence at their old positions; the rows
that left are still computed, but no row that stays reads them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from opskip_compile._compat import CACHE_ARGUMENTS, attention_implementation
from opskip_compile.attachment.decoder import decoder_of
from opskip_compile.errors import OpSkipError
from opskip_compile.models.oracle import branch_modules, decoder_layers
from opskip_compile.models.rows import token_mask, visual_tokens
from opskip_compile.schedule.modalities import VISUAL
from opskip_compile.timing.dropping import Dropping

_NAME = "opskip_dropping"
_ACTIVE: WeakKeyDictionary[nn.Module, tuple[_Drop, int]] = WeakKeyDictionary()


@contextmanager
def dropping_tokens(model: nn.Module, dropping: Dropping, modalities: tuple[str, ...] = VISUAL) -> Iterator[nn.Module]:
    """Run ``model`` with visual rows leaving, as `Dropping` says, until the block ends.

    Where a share of them stays, these are the rows that the last row of the prompt attends to most in the layer before
    they leave, the mean over its heads (FastV, arXiv 2403.06764). Where rows leave before the first layer, these are
    drawn at random, for each prompt anew, or those whose embeddings are least alike (see `diverse`). Text that follows
    on the cache of a prompt, a later turn, does not see the rows that left it.

    Args:
        model: of transformers, not compiled, with the attention interface that all of its newer models have.
        dropping: which layer, and what share of the visual rows.
        modalities: whose rows count as visual.

    Raises:
        OpSkipError: a model whose attention can't be replaced, or no layer before the first to choose rows by; inside,
            an image in a later turn.
    """
    decoder = decoder_of(model, modalities)
    if decoder is None or not hasattr(decoder, "set_attn_implementation"):
        raise OpSkipError(f"dropping: {type(model).__name__} has no text decoder whose attention can be replaced")
    layers = decoder_layers(model)
    if dropping.share < 1 and dropping.by == "attention" and not 0 < dropping.layer < len(layers):
        raise OpSkipError(f"dropping: rows are chosen by the layer before layer {dropping.layer}, and there is none")
    state, tokens = _Drop(dropping), visual_tokens(model, modalities)

    def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and starts_a_prompt(ids, named, tokens):
            state.start(token_mask(ids, tokens), ids)

    def entering(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        embedded = named.get("inputs_embeds")
        if state.gone is None and isinstance(embedded, Tensor) and embedded.shape[1] > 1:
            state.enter(embedded)

    from transformers import AttentionInterface, AttentionMaskInterface

    usual = attention_implementation(decoder.config)
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, AttentionMaskInterface()["sdpa"])
    handles = [model.register_forward_pre_hook(before, with_kwargs=True)]
    if dropping.by != "attention":
        handles.append(decoder.register_forward_pre_hook(entering, with_kwargs=True))
    for i, layer in enumerate(layers):
        for part in branch_modules(layer, "attention"):
            _ACTIVE[part] = (state, i)
    try:
        decoder.set_attn_implementation(_NAME)  # type: ignore[operator]
        if attention_implementation(decoder.config) != _NAME:
            raise OpSkipError(f"dropping: the attention of {type(model).__name__} can't be replaced")
        yield model
    finally:
        decoder.set_attn_implementation(usual)  # type: ignore[operator]
        for handle in handles:
            handle.remove()
        for layer in layers:
            for part in branch_modules(layer, "attention"):
                _ACTIVE.pop(part, None)


class _Drop:
    """The rows of one prompt, and those of them that have left."""

    def __init__(self, dropping: Dropping) -> None:
        self.dropping = dropping
        self.visual: Tensor | None = None  # bool (batch, sequence)
        self.gone: Tensor | None = None
        self._ids = torch.empty(0)

    def start(self, visual: Tensor | None, ids: Tensor) -> None:
        """A new prompt, of these token ids."""
        self.visual, self.gone = visual, visual if self.dropping.share == 1 else None
        self._ids = ids

    def enter(self, embedded: Tensor) -> None:
        """Its embeddings, ``(batch, sequence, width)``, are about to enter the decoder."""
        if self.visual is not None:
            self.gone = leaving_before_decoder(self.dropping, self.visual, self._ids, embedded)

    def masked(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Any:
        """The mask of one layer, ``(batch or 1, 1, query rows, key rows)`` or None, without the rows that left."""
        if self.visual is None:
            return mask
        rows, columns = query.shape[2], key.shape[2]
        if mask is None:
            mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)[None, None]
        if layer == self.dropping.layer - 1 and self.gone is None:
            self.gone = self._leaving(_attention_of_last(query, key, mask, scaling))
        if layer < self.dropping.layer or self.gone is None:
            return mask
        itself = torch.ones_like(mask[0, 0], dtype=torch.bool).tril(columns - rows).triu(columns - rows)
        left = pad(self.gone, (0, columns - self.gone.shape[1]))[:, None, None] & ~itself
        return mask & ~left if mask.dtype == torch.bool else mask.masked_fill(left, torch.finfo(mask.dtype).min)

    def _leaving(self, attention: Tensor) -> Tensor:
        """All visual rows but those with most attention; ``(batch, sequence)``."""
        assert self.visual is not None
        gone = self.visual.clone()
        for leaving, visual, scores in zip(gone, self.visual, attention, strict=True):
            places = visual.nonzero().flatten()
            leaving[places[scores[places].topk(self.dropping.kept(len(places))).indices]] = False
        return gone


def starts_a_prompt(ids: Tensor, named: Mapping[str, Any], tokens: tuple[int, ...]) -> bool:
    """True for the forward of a prompt, False for a decode step and for text on a filled cache.

    Args:
        ids: the token ids of the forward, ``(batch, sequence)``.
        named: its keyword arguments.
        tokens: that stand for visual rows.

    Raises:
        OpSkipError: visual rows on a filled cache.
    """
    if ids.shape[1] < 2:
        return False
    if not rows_in_cache(named):
        return True
    if token_mask(ids, tokens) is not None:
        raise OpSkipError("dropping: input_ids: an image in a later turn, on a cache that is filled already")
    return False


def rows_in_cache(named: Mapping[str, Any]) -> int:
    """How many rows the cache holds that a forward with these keyword arguments is called with."""
    cache = next((named[name] for name in CACHE_ARGUMENTS if named.get(name) is not None), None)
    return 0 if cache is None else int(cache.get_seq_length())


def leaving_before_decoder(dropping: Dropping, visual: Tensor, ids: Tensor, embedded: Tensor) -> Tensor:
    """The visual rows that never enter the decoder, bool ``(batch, sequence)``.

    Args:
        dropping: at layer 0, by ``"random"`` or ``"diverse"``.
        visual: bool ``(batch, sequence)``, the visual rows.
        ids: ``(batch, sequence)``, the token ids, which seed the random choice.
        embedded: ``(batch, sequence, width)``, what would enter the decoder.
    """
    gone = visual.clone()
    for leaving, own_ids, rows in zip(gone, ids, embedded, strict=True):
        places = leaving.nonzero().flatten()
        kept = dropping.kept(len(places))
        if dropping.by == "diverse":
            chosen = diverse(rows[places], kept)
        else:
            seed = zlib.crc32(own_ids.cpu().numpy().tobytes()) + dropping.seed
            chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:kept]
        leaving[places[chosen.to(places.device)]] = False
    return gone


def diverse(rows: Tensor, count: int) -> Tensor:
    """Rows that are least alike: each next one is the farthest from those chosen, by cosine distance, and the first is
    the farthest from all. The max-min diversity of DivPrune (arXiv 2503.02175) in this implementation.

    Args:
        rows: ``(rows, width)``.
        count: how many, at most all.

    Returns:
        int64 ``(count,)``, in the order of choice.
    """
    unit = torch.nn.functional.normalize(rows.float(), dim=-1)
    distance = (1 - unit @ unit.T).fill_diagonal_(torch.inf)
    nearest = distance.amin(1)
    chosen: list[int] = []
    for _ in range(count):
        farthest = int(nearest.argmax())
        nearest = torch.minimum(nearest, distance[farthest]) if chosen else distance[farthest].clone()
        chosen.append(farthest)
        nearest[chosen] = -torch.inf
    return torch.tensor(chosen, dtype=torch.int64, device=rows.device)


def _attention_of_last(query: Tensor, key: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attention weights of the last row, the mean over its heads: float32 ``(batch, key rows)``."""
    heads = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = query[:, :, -1:].float() @ key.repeat_interleave(heads, 1).float().transpose(2, 3) * scale
    last = mask[:, :, -1:]
    weights = weights.masked_fill(~last, -torch.inf) if mask.dtype == torch.bool else weights + last
    return weights.softmax(-1).mean(1)[:, 0]


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any) -> Any:
    from transformers import AttentionInterface

    state, layer = _ACTIVE[module]
    mask = state.masked(layer, query, key, mask, named.get("scaling"))
    return AttentionInterface()["sdpa"](module, query, key, value, mask, **named)
