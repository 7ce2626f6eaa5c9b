"""Column "inputs and outputs": what a forward is asked for besides logits, and embeddings that the caller made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import opskip_compile as opskip
from tests.helpers.families import IMAGE, ONE_IMAGE, visual_mask
from tests.helpers.support.basic import bare, forward, logits_and_cache
from tests.helpers.support.calls import compiled_module, generated, merged_rows, text_config
from tests.helpers.support.forms import Member, form
from tests.helpers.support.outcome import ABSENT, Install, Outcome, in_place, measure


def _asked(family: Member, *names: str, **more: Any) -> Outcome:
    """One forward with more keywords; the tensors under ``names`` are compared as well."""
    inputs = {**family.inputs(ONE_IMAGE), **more}

    def call(model: Any) -> list[Tensor]:
        found = model(**inputs)
        compared = logits_and_cache(found)
        for name in names:
            value = found[name]
            assert value is not None and len(value) > 0 if isinstance(value, tuple) else isinstance(value, Tensor)
            compared += [value] if isinstance(value, Tensor) else list(value)
        return compared

    return measure(family.build(), call, visual_mask(inputs))


@form("inputs and outputs", "logits_to_keep=1")
def last_logits(family: Member) -> Outcome:
    return _asked(family, logits_to_keep=1)


@form("inputs and outputs", "logits_to_keep, a tensor of rows")
def some_logits(family: Member) -> Outcome:
    return _asked(family, logits_to_keep=torch.tensor([0, 5, 20]))


@form("inputs and outputs", "output_hidden_states")
def hidden_states(family: Member) -> Outcome:
    return _asked(family, "hidden_states", output_hidden_states=True)


@form("inputs and outputs", "output_attentions")
def attentions(family: Member) -> Outcome:
    """The maps of text rows: a skipped attention has none for visual rows."""
    inputs = family.inputs(ONE_IMAGE)
    model = family.build()
    model.set_attn_implementation("eager")
    text = ~visual_mask(inputs)[0]

    def call(model: Any) -> list[Tensor]:
        found = model(**inputs, output_attentions=True)
        maps = [value[:, :, text] for value in found.attentions]
        assert maps
        return [*logits_and_cache(found), *maps]

    return measure(model, call, visual_mask(inputs))


@form("inputs and outputs", "labels")
def labels(family: Member) -> Outcome:
    ids = family.inputs(ONE_IMAGE)["input_ids"]
    return _asked(family, "loss", labels=ids.masked_fill(ids == IMAGE, -100))


@form("inputs and outputs", "return_dict=False")
def plain_tuple(family: Member) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)
    return measure(family.build(), lambda m: [m(**inputs, return_dict=False)[0]], visual_mask(inputs))


@form("inputs and outputs", "position_ids")
def positions(family: Member) -> Outcome:
    inputs, model = family.inputs(ONE_IMAGE), family.build()
    batch, length = inputs["input_ids"].shape
    given = torch.arange(length).expand(batch, length) + 5
    if "mrope_section" in (getattr(text_config(model), "rope_parameters", None) or {}):
        given = given.expand(3, batch, length)
    return measure(model, forward({**inputs, "position_ids": given}), visual_mask(inputs))


@form("inputs and outputs", "no attention_mask")
def no_mask(family: Member) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)
    del inputs["attention_mask"]
    return measure(family.build(), forward(inputs), visual_mask(inputs))


@form("inputs and outputs", "image tokens without an image")
def tokens_alone(family: Member) -> Outcome:
    """They are text, as tokens tried by prompt lookup are: with an image before them and without."""
    inputs = family.inputs(ONE_IMAGE)
    alone = {"input_ids": inputs["input_ids"].clone(), "attention_mask": inputs["attention_mask"]}

    def call(model: Any) -> list[Tensor]:
        return [*logits_and_cache(model(**inputs)), *logits_and_cache(model(**alone))]

    return measure(family.build(), call, merged_rows)


def merged(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor | None:
    """The embeddings with the image in them, as the decoder gets them; None if it is not called with any."""
    kept: list[Tensor | None] = []

    def keep(module: nn.Module, args: object, named: dict[str, Any]) -> None:
        kept.append(named.get("inputs_embeds"))

    handle = model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    model(**inputs)
    handle.remove()
    return kept[0].clone() if kept and kept[0] is not None else None


def _embeddings(family: Member, install: Install, mark: bool = True, generate: bool = False) -> Outcome:
    """The caller merged the image: without a marked prompt first, so that no graph can have taken its rows up."""
    model, inputs = family.build(), family.inputs(ONE_IMAGE)
    mask, embeddings = visual_mask(inputs), merged(model, inputs)
    if embeddings is None:
        return Outcome(ABSENT, "the model does not call its decoder with embeddings")
    model = family.build()  # without what the first forward left in it

    def call(model: Any) -> list[Tensor]:
        found: list[Tensor] = []
        for marked in (False, True) if mark else (False,):
            given = embeddings.clone()
            rows[0] = mask if marked else torch.zeros_like(mask)
            if marked:
                opskip.mark_visual(given, mask)
            if generate:
                found += generated(model, {"inputs_embeds": given, "attention_mask": inputs["attention_mask"]})
            else:
                found += logits_and_cache(model(inputs_embeds=given, attention_mask=inputs["attention_mask"]))
        return found

    def of_this_forward(inputs: Any) -> Tensor | None:
        return rows[0] if inputs.get("inputs_embeds") is not None else None

    rows = [mask]
    return measure(model, call, of_this_forward, install=install)


@form("inputs and outputs", "inputs_embeds with mark_visual")
def marked_embeddings(family: Member) -> Outcome:
    return _embeddings(family, in_place)


@form("inputs and outputs", 'inputs_embeds with mark_visual, torch.compile(backend="opskip")')
def marked_embeddings_bare(family: Member) -> Outcome:
    return _embeddings(family, bare)


@form("inputs and outputs", "inputs_embeds with mark_visual, generate")
def marked_embeddings_generate(family: Member) -> Outcome:
    return _embeddings(family, in_place, generate=True)


@form("inputs and outputs", 'inputs_embeds with mark_visual, generate, model.compile(backend="opskip")')
def marked_embeddings_generate_module(family: Member) -> Outcome:
    return _embeddings(family, compiled_module, generate=True)


@form("inputs and outputs", "inputs_embeds without mark_visual")
def unmarked_embeddings(family: Member) -> Outcome:
    return _embeddings(family, in_place, mark=False)
