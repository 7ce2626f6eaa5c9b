"""Which rows of a forward are those that a schedule means, told from its token ids and its embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opskip_compile import _compat
from opskip_compile.errors import ScheduleError
from opskip_compile.schedule.modalities import VISUAL, in_words, tokens_by_modality


def visual_tokens(model: nn.Module, modalities: tuple[str, ...] = VISUAL) -> tuple[int, ...]:
    """The token ids that stand for rows of these modalities in the config of a transformers model.

    Raises:
        ScheduleError: one token stands for rows of these and of another modality.
    """
    known = tokens_by_modality(getattr(model, "config", None))
    asked = frozenset[int]().union(*(ids for name, ids in known.items() if name in modalities))
    for name, ids in known.items():
        if name not in modalities and ids & asked:
            raise ScheduleError(
                f"modalities: {type(model).__name__} has one token for rows of {in_words(modalities)} and of {name}: "
                "name both, or none of them"
            )
    return tuple(sorted(asked))


def token_mask(ids: object, tokens: tuple[int, ...]) -> Tensor | None:
    """Where the visual tokens of a prompt stand, or None for a decode step and for text."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] < 2:
        return None
    mask = torch.isin(ids, torch.tensor(tokens, device=ids.device))
    return mask if bool(mask.any()) else None


def embedded_mask(embeddings: object, model: nn.Module, tokens: tuple[int, ...]) -> Tensor | None:
    """As `token_mask`, for a prompt that is given as embeddings: the rows that are the embedding of a visual token.

    transformers finds the rows in the same way where it gets no token ids (`get_placeholder_mask`).

    Args:
        embeddings: ``(batch, sequence, width)``, of the prompt.
        model: looks tokens up by the `nn.Embedding` that it names; without one no row is known.
        tokens: of `visual_tokens`.
    """
    words = _words(model, tokens)
    if not isinstance(embeddings, Tensor) or embeddings.dim() != 3 or embeddings.shape[1] < 2 or words is None:
        return None
    mask = torch.zeros(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
    for word in words.to(embeddings.device, embeddings.dtype):
        mask |= (embeddings == word).all(-1)
    return mask if bool(mask.any()) else None


def without_plain_tokens(mask: Tensor, hidden: Tensor, model: nn.Module, tokens: tuple[int, ...]) -> Tensor:
    """The rows of ``mask`` that hold features. A row with the embedding of its token is text: no image came with it.

    Tokens that prompt lookup tries are such rows, and prompts in which the token is a word.

    Args:
        mask: bool ``(batch, sequence)``.
        hidden: ``(batch, sequence, width)``, the input of the decoder.
        model: looks tokens up by the `nn.Embedding` that it names; without one every row of ``mask`` holds features.
        tokens: that ``mask`` was made from.
    """
    words = _words(model, tokens)
    if words is None or hidden.device.type == "meta":
        return mask
    mask = mask.to(hidden.device)
    for word in words.to(hidden.device):
        mask = mask & (hidden != word).any(-1)
    return mask


def _words(model: nn.Module, tokens: tuple[int, ...]) -> Tensor | None:
    """The embeddings of the tokens, ``(tokens, width)``; None where the model has no table of embeddings."""
    get = getattr(model, "get_input_embeddings", None)
    embedding = get() if callable(get) else None
    if not isinstance(embedding, nn.Embedding):
        return None
    device = embedding.weight.device
    if device.type == "meta" and not _compat.has_hook(embedding):
        return None
    known = [token for token in tokens if 0 <= token < embedding.num_embeddings]
    ids = torch.tensor(known, dtype=torch.int64, device="cpu" if device.type == "meta" else device)
    with torch.no_grad():
        words: Tensor = embedding(ids)  # a hook loads weights that are off-loaded
    return words
