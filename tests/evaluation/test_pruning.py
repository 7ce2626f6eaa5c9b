"""Tokens pruned before the decoder, alone and with operators skipped on those that stay: against shorter prompts,
against hooks that hide rows in the attention, and against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import opskip_compile as opskip
from opskip_compile.errors import OpSkipError
from opskip_compile.evaluation.dropping import diverse, dropping_tokens, leaving_before_decoder
from opskip_compile.evaluation.pruning import pruning_tokens
from opskip_compile.models.generation import greedy
from opskip_compile.models.oracle import oracle
from opskip_compile.timing.dropping import Dropping
from tests.helpers.families import FAMILIES, UNEVEN, visual_mask

LAYERS = 4
ONE = ((3, 5),)
SPECS = ("silent:2-3 attend:1", "silent@keep=0.25:2-3 transform@keep=0.5:1")


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def logits(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**inputs, use_cache=False).logits
    return result


def embedded(model: Any, inputs: Any) -> Tensor:
    """What enters the decoder."""
    held: list[Tensor] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda m, a, k: held.append(k["inputs_embeds"]), with_kwargs=True
    )
    logits(model, inputs)
    handle.remove()
    return held[0]


def gone(model: Any, inputs: Any, dropping: Dropping) -> Tensor:
    return leaving_before_decoder(dropping, visual_mask(inputs), inputs["input_ids"], embedded(model, inputs))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("by", ["random", "diverse"])
def test_pruned_rows_are_hidden_as_dropped_ones_are(family: str, by: Any) -> None:
    """By the padding mask what the other hooks do in the attention, for every row that stays and while decoding."""
    model, inputs = FAMILIES[family].build(LAYERS), FAMILIES[family].inputs(UNEVEN)
    dropping = Dropping(0, 0.6, by, seed=3)
    stay = inputs["attention_mask"].bool() & ~gone(model, inputs, dropping)
    dense = logits(model, inputs)
    with dropping_tokens(model, dropping):
        expected, said = logits(model, inputs), greedy(model, inputs, 4, ("a", "b"))
    with pruning_tokens(model, dropping):
        result = logits(model, inputs)
        assert greedy(model, inputs, 4, ("a", "b")) == said
    assert torch.allclose(result[stay], expected[stay], atol=1e-5)
    assert not torch.allclose(result[stay], dense[stay], atol=1e-3)
    assert torch.equal(logits(model, inputs), dense)  # it is gone again


def shorter(model: Any, inputs: Any, dropping: Dropping, schedule: opskip.Schedule) -> Tensor:
    """The last row of a Llama that is called with the rows that stay alone, at their old places, under the oracle."""
    visual, rows = visual_mask(inputs)[0], embedded(model, inputs)
    places = visual.nonzero().flatten()
    chosen = diverse(rows[0, places], dropping.kept(len(places)))
    stay = torch.cat([(~visual).nonzero().flatten(), places[chosen]]).sort().values
    alone = {"inputs_embeds": rows[:, stay], "attention_mask": torch.ones(1, len(stay), dtype=torch.int64)}
    decoder = model.get_decoder()
    with torch.no_grad(), oracle(decoder, schedule, visual[None, stay]):
        hidden = decoder(**alone, position_ids=stay[None], use_cache=False)[0]
        result: Tensor = model.lm_head(hidden)[0, -1]
    return result


@pytest.mark.parametrize("spec", SPECS)
def test_both_at_once_are_the_oracle_on_a_shorter_prompt(spec: str) -> None:
    """A keep share is one of the rows that stay."""
    model, inputs = FAMILIES["llava"].build(LAYERS), FAMILIES["llava"].inputs(ONE)
    dropping, schedule = Dropping(0, 0.5, "diverse"), opskip.Schedule.from_spec(spec)
    expected = shorter(model, inputs, dropping, schedule)
    with pruning_tokens(model, dropping):
        alone = logits(model, inputs)[0, -1]
        opskip.compile(model, schedule, prefill_only=True, options={"lower": "eager"})
        result = logits(model, inputs)[0, -1]
        assert opskip.last_report().rewritten
        opskip.remove(model)
    opskip.compile(model, schedule, prefill_only=True, options={"lower": "eager"})
    skipped = logits(model, inputs)[0, -1]
    opskip.remove(model)
    assert torch.allclose(result, expected, atol=1e-5)
    assert not torch.allclose(result, alone, atol=1e-3)
    assert not torch.allclose(result, skipped, atol=1e-3)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("spec", SPECS)
def test_both_at_once_are_the_oracle_with_hidden_rows(family: str, spec: str) -> None:
    """In a batch with padding and two images, prefill and answers: rows are hidden, and hooks are on the operators."""
    model, inputs = FAMILIES[family].build(LAYERS), FAMILIES[family].inputs(UNEVEN)
    dropping, schedule = Dropping(0, 0.5, "diverse"), opskip.Schedule.from_spec(spec)
    leaving = gone(model, inputs, dropping)
    stay = inputs["attention_mask"].bool() & ~leaving
    with pruning_tokens(model, dropping), oracle(model, schedule, visual_mask(inputs) & ~leaving):
        expected, said = logits(model, inputs), greedy(model, inputs, 4, ("a", "b"))
    with pruning_tokens(model, dropping):
        opskip.compile(model, schedule, prefill_only=True, options={"lower": "eager"})
        result = logits(model, inputs)
        assert greedy(model, inputs, 4, ("a", "b")) == said
        opskip.remove(model)
    assert torch.allclose(result[stay], expected[stay], atol=1e-5)


@pytest.mark.parametrize("hide", [pruning_tokens, dropping_tokens])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_later_turn_does_not_see_the_rows_that_left(hide: Any, family: str) -> None:
    """Text on the cache of a prompt gives what the prompt with that text behind it gives."""
    model, inputs = FAMILIES[family].build(LAYERS), FAMILIES[family].inputs(ONE)
    text = torch.tensor([[11, 57, 23]])
    dropping = Dropping(0, 0.5, "diverse")
    with hide(model, dropping), torch.no_grad():
        cache = DynamicCache(config=model.get_decoder().config)
        length = inputs["input_ids"].shape[1]
        model(**inputs, past_key_values=cache)
        whole = torch.ones(1, length + 3, dtype=torch.int64)
        later = model(input_ids=text, past_key_values=cache).logits
        longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], text], 1), "attention_mask": whole}
        if "mm_token_type_ids" in longer:
            longer["mm_token_type_ids"] = torch.cat([longer["mm_token_type_ids"], torch.zeros_like(text)], 1)
        expected = logits(model, longer)[:, -3:]
        assert torch.allclose(later, expected, atol=1e-5)
        with pytest.raises(OpSkipError, match="dropping: input_ids: an image in a later turn"):
            model(**inputs, past_key_values=cache)
    assert not torch.allclose(logits(model, longer)[:, -3:], expected, atol=1e-3)


def test_what_can_not_be_pruned() -> None:
    model, inputs = FAMILIES["llava"].build(2), FAMILIES["llava"].inputs(ONE)
    with (
        pytest.raises(OpSkipError, match="pruning: Linear has no text decoder of its own"),
        pruning_tokens(nn.Linear(2, 2), Dropping(0, 0.5, "diverse")),
    ):
        pass
    for dropping, said in ((Dropping(1, 0.5), "layer 1 by attention"), (Dropping(0, 1.0), "layer 0 by attention")):
        with pytest.raises(OpSkipError, match=f"not before {said}"), pruning_tokens(model, dropping):
            pass
    square = torch.ones(1, 1, 24, 24, dtype=torch.bool)
    with (
        pytest.raises(OpSkipError, match=r"pruning: attention_mask: expected the shape \(1, 24\)"),
        pruning_tokens(model, Dropping(0, 0.5, "diverse")),
    ):
        logits(model, {**inputs, "attention_mask": square})
