"""Token pruning before the decoder of a whole model that may be compiled: for what operators then skip on the rest.

Rows that are pruned are hidden by the padding mask that the decoder is called with, from all rows that stay and from
every later step. So the decoder itself, its attention and the compiled code are those of a plain prompt, and what the
rows that stay compute is what they compute in the shorter sequence at their old positions. The visual rows of the
prompt are then those that stay: `mark_visual` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from opskip_compile.attachment.decoder import decoder_of
from opskip_compile.errors import OpSkipError
from opskip_compile.evaluation.dropping import leaving_before_decoder, rows_in_cache, starts_a_prompt
from opskip_compile.models.rows import token_mask, visual_tokens
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.schedule.modalities import VISUAL
from opskip_compile.timing.dropping import Dropping


@contextmanager
def pruning_tokens(model: nn.Module, dropping: Dropping, modalities: tuple[str, ...] = VISUAL) -> Iterator[nn.Module]:
    """Run ``model`` without some of its visual rows, until the block ends.

    Whoever compiles the model has to do so inside of the block: of two hooks on the decoder the first runs first.

    Args:
        model: of transformers, with a text decoder of its own.
        dropping: at layer 0, by ``"random"`` or ``"diverse"``.
        modalities: whose rows count as visual.

    Raises:
        OpSkipError: another layer, no text decoder; inside, an attention mask that is not ``(batch, keys)``, or an
            image in a later turn.
    """
    decoder = decoder_of(model, modalities)
    if decoder is None:
        raise OpSkipError(f"pruning: {type(model).__name__} has no text decoder of its own")
    if dropping.layer or dropping.by == "attention":
        raise OpSkipError(f"pruning: rows leave before the decoder, not before layer {dropping.layer} by {dropping.by}")
    tokens = visual_tokens(model, modalities)
    prompt: list[tuple[Tensor, Tensor]] = []  # token ids and visual rows, until the decoder is called
    gone: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and starts_a_prompt(ids, named, tokens):
            visual = token_mask(ids, tokens)
            prompt[:], gone[:] = [] if visual is None else [(ids, visual)], []

    def entering(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        embedded = named.get("inputs_embeds")
        if not isinstance(embedded, Tensor) or not (prompt or gone):
            return None
        if prompt:
            ids, visual = prompt.pop()
            gone[:] = [leaving_before_decoder(dropping, visual, ids, embedded)]
            mark_visual(embedded, visual & ~gone[0])
        keys = rows_in_cache(named) + embedded.shape[1]
        return args, {**named, "attention_mask": _without(named.get("attention_mask"), gone[0], keys)}

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_pre_hook(entering, with_kwargs=True),
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _without(mask: object, gone: Tensor, keys: int) -> Tensor:
    """The padding mask ``(batch, keys)`` of a forward, without the rows that are gone from its prompt."""
    if mask is None:
        mask = torch.ones(len(gone), keys, dtype=torch.int64, device=gone.device)
    if not isinstance(mask, Tensor) or mask.shape != (len(gone), keys):
        raise OpSkipError(f"pruning: attention_mask: expected the shape ({len(gone)}, {keys})")
    return mask.masked_fill(pad(gone, (0, keys - gone.shape[1])), 0)
