"""Columns "caches" and "generate": logits of all steps, and keys and values of all layers.

Decode steps have no visual rows, so their graphs come out unchanged, and a loop of steps needs no graph of its own
for each.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import QuantizedCache
from transformers.generation import CompileConfig

import opskip_compile as opskip
from opskip_compile.passes.steps import NO_ROWS
from tests.helpers.caches import CACHE
from tests.helpers.families import ONE_IMAGE, UNEVEN, visual_mask
from tests.helpers.support.basic import forward, logits_and_cache
from tests.helpers.support.forms import Member, form
from tests.helpers.support.outcome import ABSENT, THROUGH, Call, Outcome, measure

ROOM = 96  # rows of a static cache
STEPS = 6
OTHER = ((5, 4),)  # as many rows as ONE_IMAGE with one more, the image further on
FEATURES = ("pixel_values", "mm_encoder_outputs", "image_patches", "input_features")


def merged_rows(inputs: Mapping[str, Any]) -> Tensor | None:
    """For the oracle: the image tokens of a forward that is given images; without images these are plain tokens."""
    ids = inputs.get("input_ids")
    given = any(value is not None and len(value) for name, value in inputs.items() if name.startswith(FEATURES))
    return visual_mask({"input_ids": ids}) if given and ids is not None else None


def text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def static_cache(model: Any, room: int = ROOM) -> StaticCache:
    return StaticCache(config=text_config(model), max_cache_len=room)


def windowed(model: Any, window: int = 8) -> nn.Module | None:
    """The same weights with a sliding window in every other layer, or in all; None if the decoder has no windows."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    if not hasattr(text, "sliding_window"):
        return None
    text.sliding_window = window
    if hasattr(text, "use_sliding_window"):
        text.use_sliding_window = True
    if getattr(text, "layer_types", None):
        text.layer_types = ["sliding_attention", "full_attention"] * (text.num_hidden_layers // 2)
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    return other


@form("caches", "no cache")
def no_cache(family: Member) -> Outcome:
    inputs = {**family.inputs(ONE_IMAGE), "use_cache": False}
    return measure(family.build(), forward(inputs), visual_mask(inputs))


@form("caches", "DynamicCache")
def dynamic_cache(family: Member) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)

    def call(model: Any) -> list[Tensor]:
        return logits_and_cache(model(**inputs, **{CACHE: DynamicCache(config=text_config(model))}))

    return measure(family.build(), call, visual_mask(inputs))


@form("caches", "StaticCache")
def static(family: Member) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)

    def call(model: Any) -> list[Tensor]:
        return logits_and_cache(model(**inputs, **{CACHE: static_cache(model)}))

    return measure(family.build(), call, visual_mask(inputs))


@form("caches", "StaticCache, reset and used again")
def static_again(family: Member) -> Outcome:
    """The second prompt has other sizes, and the image in another place."""
    prompts = [family.inputs(ONE_IMAGE), family.inputs(OTHER, 1), family.inputs(OTHER, 2)]

    def call(model: Any) -> list[Tensor]:
        cache, found = static_cache(model), list[Tensor]()
        for inputs in prompts:
            cache.reset()
            found += [tensor.clone() for tensor in logits_and_cache(model(**inputs, **{CACHE: cache}))]
        return found

    return measure(family.build(), call, merged_rows)


@form("caches", "sliding-window cache, dynamic")
def sliding(family: Member) -> Outcome:
    return _sliding(family, lambda model: DynamicCache(config=text_config(model)))


@form("caches", "sliding-window cache, static")
def sliding_static(family: Member) -> Outcome:
    return _sliding(family, static_cache)


def _sliding(family: Member, cache: Any) -> Outcome:
    """A prompt that is longer than the window, and steps after it."""
    model, inputs = windowed(family.build()), family.inputs(ONE_IMAGE)
    if model is None:
        return Outcome(ABSENT, "the decoder has no sliding window")
    return measure(model, lambda model: generated(model, inputs, **{CACHE: cache(model)}), merged_rows)


@form("caches", "QuantizedCache, fp8")
def quantized(family: Member) -> Outcome:
    """The prefill: rounding in later steps turns the last bit into an eighth of a value."""
    model, inputs = family.build(), family.inputs(ONE_IMAGE)
    if set(getattr(text_config(model), "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return Outcome(ABSENT, "transformers quantises the cache of full attention only")

    def call(model: Any) -> list[Tensor]:
        cache = QuantizedCache(backend="fp8", config=model.config)
        return [model(**inputs, **{CACHE: cache}).logits]

    return measure(model, call, visual_mask(inputs))


def generated(model: Any, inputs: Mapping[str, Any], **more: Any) -> list[Tensor]:
    """Token ids, logits of all steps, and keys and values, of `STEPS` new tokens."""
    made = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "output_logits": True, **more}
    found = model.generate(**inputs, **made, return_dict_in_generate=True)
    return [found.sequences, *found.logits, *keys_and_values(found[CACHE])]


def keys_and_values(cache: Any) -> list[Tensor]:
    kept = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return [tensor for tensor in kept if isinstance(tensor, Tensor)]


def few_graphs(reports: Sequence[opskip.Report]) -> None:
    """One graph of the prefill, and of all decode steps at most two, which are unchanged.

    Where breaks cut the forward into pieces, each piece is compiled at most twice again.
    """
    steps = [report for report in reports if not report.operators]
    assert all(report.refusal == NO_ROWS for report in steps), [report.reason for report in steps]
    assert sum(bool(report.operators) for report in reports) <= 1
    again = [report.recompile for report in reports if report.recompile]
    assert len(again) <= 2 * (len(reports) - len(again)), again


def generation(inputs: Mapping[str, Any], **more: Any) -> Call:
    """A call for `measure`: one `generate`."""
    return lambda model: generated(model, inputs, **more)


def compiled_module(model: nn.Module, spec: str) -> nn.Module:
    """``model.compile`` with the backend, the whole model."""
    model.compile(backend="opskip", options={"schedule": spec, "lower": "eager"})
    return model


@form("generate", "greedy")
def greedy(family: Member) -> Outcome:
    return measure(family.build(), generation(family.inputs(ONE_IMAGE)), merged_rows, check=few_graphs)


@form("generate", "greedy, rows through_visual")
def greedy_through(family: Member) -> Outcome:
    return measure(family.build(), generation(family.inputs(ONE_IMAGE)), merged_rows, THROUGH, check=few_graphs)


@form("generate", 'greedy, model.compile(backend="opskip")')
def greedy_module(family: Member) -> Outcome:
    return measure(family.build(), generation(family.inputs(ONE_IMAGE)), merged_rows, install=compiled_module)


@form("generate", "greedy, a batch with padding")
def greedy_batch(family: Member) -> Outcome:
    inputs = family.inputs(UNEVEN)
    padding = inputs["attention_mask"] == 0

    def call(model: Any) -> list[Tensor]:
        found = generated(model, inputs)
        kept = [tensor for tensor in found if tensor.dim() == 4]
        for tensor in kept:  # what stands at padded rows is read by nobody
            if tensor.shape[2] >= padding.shape[1]:
                tensor[:, :, : padding.shape[1]].masked_fill_(padding[:, None, :, None], 0)
        return found

    return measure(family.build(), call, merged_rows, check=few_graphs)


@form("generate", "greedy, no cache")
def greedy_without_cache(family: Member) -> Outcome:
    """Every step runs the whole prompt again, with its images."""

    def call(model: Any) -> list[Tensor]:
        made = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "output_logits": True}
        found = model.generate(**family.inputs(ONE_IMAGE), **made, use_cache=False, return_dict_in_generate=True)
        return [found.sequences, *found.logits]

    return measure(family.build(), call, merged_rows)


@form("generate", "sampling")
def sampling(family: Member) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)

    def call(model: Any) -> list[Tensor]:
        torch.manual_seed(0)
        return generated(model, inputs, do_sample=True)

    return measure(family.build(), call, merged_rows, check=few_graphs)


@form("generate", "beam search")
def beams(family: Member) -> Outcome:
    return measure(family.build(), generation(family.inputs(ONE_IMAGE), num_beams=3), merged_rows, check=few_graphs)


@form("generate", "static cache")
def static_generate(family: Member) -> Outcome:
    call = generation(family.inputs(ONE_IMAGE), cache_implementation="static")
    return measure(family.build(), call, merged_rows, check=few_graphs)


@form("generate", "static cache, decode steps compiled by transformers")
def static_generate_compiled(family: Member) -> Outcome:
    """As on an accelerator, where `generate` compiles the steps itself."""
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    call = generation(family.inputs(ONE_IMAGE), cache_implementation="static", compile_config=config)
    return measure(family.build(), call, merged_rows)


@form("generate", 'static cache, decode steps compiled by transformers, model.compile(backend="opskip")')
def static_generate_compiled_module(family: Member) -> Outcome:
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    call = generation(family.inputs(ONE_IMAGE), cache_implementation="static", compile_config=config)
    return measure(family.build(), call, merged_rows, install=compiled_module)
