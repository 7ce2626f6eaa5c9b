"""Column "later turns": a filled cache gets more of the prompt, with images or without.

Visual rows are those of the forward at hand: what an earlier turn left in the cache is keys and values only, and
``through_visual`` means the rows of this forward up to its last visual one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.helpers.caches import CACHE
from tests.helpers.families import IMAGE, ONE_IMAGE
from tests.helpers.support.basic import logits_and_cache
from tests.helpers.support.calls import generated, keys_and_values, merged_rows, static_cache, text_config
from tests.helpers.support.forms import Member, form
from tests.helpers.support.outcome import ABSENT, SPEC, THROUGH, Outcome, measure

SECOND = ((4, 3),)
TOKEN = torch.tensor([[7]])


def going_on(model: Any, inputs: Mapping[str, Tensor], cache: Any) -> dict[str, Any]:
    """Keyword inputs of one more forward on a filled cache: the whole attention mask, and positions that go on."""
    past, (batch, length) = int(cache.get_seq_length()), inputs["input_ids"].shape
    positions = torch.arange(past, past + length).expand(batch, length)
    rope = getattr(text_config(model), "rope_parameters", None) or {}
    if "mrope_section" in rope:  # time, height and width
        positions = positions.expand(3, batch, length)
    mask = torch.ones(batch, past + length, dtype=torch.int64)
    return {**inputs, "attention_mask": mask, "position_ids": positions, CACHE: cache}


def turns(model: Any, cache: Any, *forwards: Mapping[str, Tensor]) -> list[Tensor]:
    """Several forwards on one cache: the logits of each, and the keys and values at the end."""
    outputs = [
        model(**(going_on(model, inputs, cache) if i else {**inputs, CACHE: cache}))
        for i, inputs in enumerate(forwards)
    ]
    return [*(out.logits for out in outputs[:-1]), *logits_and_cache(outputs[-1])]


def _turns(family: Member, spec: str, *forwards: Mapping[str, Tensor], static: bool = False) -> Outcome:
    def call(model: Any) -> list[Tensor]:
        cache = static_cache(model, 64) if static else DynamicCache(config=text_config(model))
        return turns(model, cache, *forwards)

    return measure(family.build(), call, merged_rows, spec)


def _step() -> dict[str, Tensor]:
    return {"input_ids": TOKEN}


@form("later turns", "a new image on a filled cache")
def new_image(family: Member) -> Outcome:
    """Turn one with two decode steps, then text, an image and text."""
    return _turns(family, SPEC, family.inputs(ONE_IMAGE), _step(), _step(), family.inputs(SECOND, 1), _step())


@form("later turns", "a new image on a filled cache, rows through_visual")
def new_image_through(family: Member) -> Outcome:
    return _turns(family, THROUGH, family.inputs(ONE_IMAGE), _step(), family.inputs(SECOND, 1), _step())


@form("later turns", "a new image on a filled static cache")
def new_image_static(family: Member) -> Outcome:
    return _turns(family, SPEC, family.inputs(ONE_IMAGE), _step(), family.inputs(SECOND, 1), _step(), static=True)


@form("later turns", "text on a filled cache")
def text(family: Member) -> Outcome:
    return _turns(family, SPEC, family.inputs(ONE_IMAGE), _step(), family.inputs(((5,),), 1), _step())


@form("later turns", "the first image on a cache filled with text")
def first_image(family: Member) -> Outcome:
    return _turns(family, SPEC, family.inputs(((6,),)), _step(), family.inputs(SECOND, 1), _step())


def cut(inputs: Mapping[str, Tensor], at: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A prompt in two chunks; what belongs to the image goes with the chunk that holds it."""
    length = inputs["input_ids"].shape[1]
    image = 0 if bool((inputs["input_ids"][:, :at] == IMAGE).any()) else 1
    chunks: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, value in inputs.items():
        if value.dim() == 2 and value.shape[1] == length:
            chunks[0][name], chunks[1][name] = value[:, :at], value[:, at:]
        else:
            chunks[image][name] = value
    return chunks


@form("later turns", "prefill in two chunks, the image in the first")
def chunks_after(family: Member) -> Outcome:
    inputs = family.inputs(((3, 8),))
    return _turns(family, SPEC, *cut(inputs, inputs["input_ids"].shape[1] - 4), _step())


@form("later turns", "prefill in two chunks, the image in the second")
def chunks_before(family: Member) -> Outcome:
    return _turns(family, SPEC, *cut(family.inputs(((8, 3),)), 4), _step())


@form("later turns", "generate with prefill_chunk_size, cut inside the image")
def chunks_inside(family: Member) -> Outcome:
    model, inputs = family.build(), family.inputs(ONE_IMAGE)
    if not getattr(model, "_supports_mm_encoder_outputs", lambda: False)():
        return Outcome(ABSENT, "transformers cannot cut the prompt: the class takes no features made before")
    return measure(model, lambda m: generated(m, inputs, prefill_chunk_size=10), merged_rows)


@form("later turns", "generate goes on from its own cache")
def continued(family: Member) -> Outcome:
    """The second call gets all tokens so far, one new word, and the cache of the first."""
    inputs = family.inputs(ONE_IMAGE)

    def call(model: Any) -> list[Tensor]:
        made = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "output_logits": True}
        first = model.generate(**inputs, **made, return_dict_in_generate=True)
        so_far = torch.cat([first.sequences, TOKEN, TOKEN], 1)
        more = {"attention_mask": torch.ones_like(so_far), CACHE: first[CACHE]}
        second = model.generate(so_far, **more, **made, return_dict_in_generate=True)
        return [second.sequences, *first.logits, *second.logits, *keys_and_values(second[CACHE])]

    return measure(family.build(), call, merged_rows)


@form("later turns", "assisted generation, prompt lookup")
def lookup(family: Member) -> Outcome:
    """Candidates are tried several rows at a time; none of these rows is visual."""
    inputs = family.inputs(((9, 9),))
    inputs["input_ids"][:, -8:] = torch.tensor([11, 12, 13, 14, 11, 12, 13, 14])
    return measure(family.build(), lambda m: generated(m, inputs, prompt_lookup_num_tokens=3), merged_rows)


@form("later turns", "assisted generation, a smaller model")
def assisted(family: Member) -> Outcome:
    inputs, assistant = family.inputs(ONE_IMAGE), family.build(1)
    return measure(family.build(), lambda m: generated(m, inputs, assistant_model=assistant), merged_rows)
