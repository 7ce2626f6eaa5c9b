"""Column "one image": both ways to compile, both row sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.caches import CACHE
from tests.helpers.families import ONE_IMAGE, visual_mask
from tests.helpers.support.forms import Member, form
from tests.helpers.support.outcome import THROUGH, Outcome, measure


def logits_and_cache(outputs: Any) -> list[Tensor]:
    """What a forward gives: the logits, then keys and values of every layer that caches some."""
    cache = outputs.get(CACHE)
    cache = getattr(cache, "self_attention_cache", cache)  # an encoder-decoder has two
    layers = [] if cache is None else cache.layers
    kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return [outputs.logits, *(tensor for tensor in kept if isinstance(tensor, Tensor))]


def bare(model: nn.Module, spec: str) -> Any:
    """``torch.compile`` of the whole model."""
    return torch.compile(model, backend="opskip", options={"schedule": spec, "lower": "eager"})


def forward(inputs: dict[str, Tensor]) -> Any:
    """A call for `measure`: one forward."""

    def call(model: Any) -> Sequence[Tensor]:
        return logits_and_cache(model(**inputs))

    return call


@form("one image", "opskip.compile")
def compiled_in_place(family: Member) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)
    return measure(family.build(), forward(inputs), visual_mask(inputs))


@form("one image", "opskip.compile, rows through_visual")
def compiled_in_place_through(family: Member) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)
    return measure(family.build(), forward(inputs), visual_mask(inputs), THROUGH)


@form("one image", 'torch.compile(backend="opskip")')
def compiled_bare(family: Member) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)
    return measure(family.build(), forward(inputs), visual_mask(inputs), install=bare)
