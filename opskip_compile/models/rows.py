"""Which rows of a forward are visual, told from its token ids, its embeddings and the marks on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile.passes.marks import MARKS

_TOKEN_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
_PREPARE = "prepare_inputs_for_generation"


def visual_tokens(model: nn.Module) -> tuple[int, ...]:
    """The token ids that stand for rows of images and videos in the config of a transformers model."""
    config = getattr(model, "config", None)
    values = (getattr(config, name, None) for name in _TOKEN_FIELDS)
    return tuple(sorted({value for value in values if isinstance(value, int)}))


def token_mask(ids: object, tokens: tuple[int, ...]) -> Tensor | None:
    """Where the visual tokens of a prompt stand, or None for a decode step and for text."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] < 2:
        return None
    mask = torch.isin(ids, torch.tensor(tokens, device=ids.device))
    return mask if bool(mask.any()) else None


def without_plain_tokens(mask: Tensor, hidden: Tensor, model: nn.Module, tokens: tuple[int, ...]) -> Tensor | None:
    """The rows of ``mask`` that hold features. A row with the embedding of its token is text: no image came with it.

    Tokens that prompt lookup tries are such rows, and prompts in which the token is a word.

    Args:
        mask: bool ``(batch, sequence)``.
        hidden: ``(batch, sequence, width)``, the input of the decoder.
        model: looks tokens up by the `nn.Embedding` that it names; without one every row of ``mask`` holds features.
        tokens: that ``mask`` was made from.

    Returns:
        None if no row is left.
    """
    get = getattr(model, "get_input_embeddings", None)
    embedding = get() if callable(get) else None
    if not isinstance(embedding, nn.Embedding) or hidden.device.type == "meta":
        return mask
    mask = mask.to(hidden.device)
    known = [token for token in tokens if 0 <= token < embedding.num_embeddings]
    with torch.no_grad():
        words = embedding(torch.tensor(known, device=embedding.weight.device)).to(hidden.device)
    for word in words:
        mask = mask & (hidden != word).any(-1)
    return mask if bool(mask.any()) else None


def carry_marks(model: nn.Module) -> Callable[[], None]:
    """Let ``generate(inputs_embeds=...)`` keep the mark of the embeddings, which it copies; returns what undoes it."""
    prepare = getattr(model, _PREPARE, None)
    if prepare is None:
        return lambda: None
    replaced = vars(model).get(_PREPARE)

    @functools.wraps(prepare)
    def prepare_inputs_for_generation(*args: Any, **named: Any) -> Any:
        inputs = prepare(*args, **named)
        mark, copied = MARKS.get(named.get("inputs_embeds")), inputs.get("inputs_embeds")
        if mark is not None and isinstance(copied, Tensor):
            MARKS.put(copied, mark.mask[:, -copied.shape[1] :])
        return inputs

    def undo() -> None:
        delattr(model, _PREPARE)
        if replaced is not None:
            setattr(model, _PREPARE, replaced)

    setattr(model, _PREPARE, prepare_inputs_for_generation)
    return undo
