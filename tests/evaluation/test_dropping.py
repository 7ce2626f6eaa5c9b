"""Token dropping by hiding rows gives what the shorter sequence gives; hidden rows stay hidden while decoding."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opskip_compile.errors import OpSkipError
from opskip_compile.evaluation.dropping import diverse, dropping_tokens
from opskip_compile.models.generation import greedy
from opskip_compile.models.oracle import decoder_layers
from opskip_compile.timing.dropping import Dropping
from tests.helpers.families import FAMILIES, IMAGE, UNEVEN, visual_mask
from tests.helpers.planted import text_looks_away

LAYERS = 4
ONE = ((3, 5),)  # one prompt with one image of 16 visual rows


def logits(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**inputs, use_cache=False).logits
    return result


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("layer", [0, 2])
def test_all_visual_rows_leave(family: str, layer: int) -> None:
    """Rows behind the image get what they get if they do not attend to it from that layer on."""
    model, inputs = FAMILIES[family].build(LAYERS), FAMILIES[family].inputs(UNEVEN)
    text = ~visual_mask(inputs) & inputs["attention_mask"].bool()
    dense = logits(model, inputs)
    with dropping_tokens(model, Dropping(layer, 1.0)):
        result = logits(model, inputs)
    assert torch.equal(logits(model, inputs), dense)  # it is gone again
    other = FAMILIES[family].build(LAYERS)
    with text_looks_away(other, layer):
        expected = logits(other, inputs)
    assert torch.allclose(result[text], expected[text], atol=1e-5)
    assert not torch.allclose(result[text], dense[text], atol=1e-3)


def shorter(model: Any, inputs: Any, layer: int, kept: int) -> Tensor:
    """The published form on a Llama: the rows that the last one attends to least are taken out of the sequence."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        run = model(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
        decoder = model.get_decoder()
        model.set_attn_implementation("sdpa")
        hidden, scores = run.hidden_states[layer], run.attentions[layer - 1][0, :, -1].mean(0)
        visual = visual_mask(inputs)[0]
        places = visual.nonzero().flatten()
        stay = torch.cat([(~visual).nonzero().flatten(), places[scores[places].topk(kept).indices]]).sort().values
        cos, sin = decoder.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        hidden, cos, sin = (x[:, stay] for x in (hidden, cos, sin))
        for part in decoder.layers[layer:]:
            hidden = part(hidden, attention_mask=None, position_embeddings=(cos, sin))
        result: Tensor = model.lm_head(decoder.norm(hidden))[0, -1]
    return result


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_share_of_the_visual_rows_leaves(share: float) -> None:
    model, inputs = FAMILIES["llava"].build(LAYERS), FAMILIES["llava"].inputs(ONE)
    dropping = Dropping(2, share)
    expected = shorter(model, inputs, 2, dropping.kept(16))
    with dropping_tokens(model, dropping):
        result = logits(model, inputs)[0, -1]
    assert torch.allclose(result, expected, atol=1e-5)
    assert not torch.allclose(result, logits(model, inputs)[0, -1], atol=1e-3)


def without(model: Any, inputs: Any, stay: Tensor) -> Tensor:
    """The last row of a Llama whose prompt never had the other rows, at the old positions."""
    held: list[Tensor] = []
    decoder = model.get_decoder()
    handle = decoder.register_forward_pre_hook(lambda m, a, k: held.append(k["inputs_embeds"]), with_kwargs=True)
    logits(model, inputs)
    handle.remove()
    places = torch.arange(held[0].shape[1])[None]
    with torch.no_grad():
        alone = {"inputs_embeds": held[0][:, stay], "attention_mask": torch.ones(1, len(stay), dtype=torch.int64)}
        hidden = decoder(**alone, position_ids=places[:, stay], use_cache=False)[0]
        result: Tensor = model.lm_head(hidden)[0, -1]
    return result


def farthest(rows: Tensor, count: int) -> list[int]:
    """By trying every row that is left: the one whose nearest chosen one is the farthest."""

    def distance(a: int, b: int) -> float:
        return 1 - float(rows[a] @ rows[b] / rows[a].norm() / rows[b].norm())

    every = range(len(rows))
    chosen = [max(every, key=lambda i: min(distance(i, k) for k in every if k != i))][:count]
    while len(chosen) < count:
        left = [i for i in every if i not in chosen]
        chosen.append(max(left, key=lambda i: min(distance(i, k) for k in chosen)))
    return chosen


def test_the_most_diverse_rows() -> None:
    rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    for count in (0, 1, 7, 20):
        assert diverse(rows, count).tolist() == farthest(rows, count)
    alike = torch.cat([rows[:3], rows[:3]])
    assert {i % 3 for i in diverse(alike, 3).tolist()} == {0, 1, 2}  # no row and its double


@pytest.mark.parametrize("by", ["random", "diverse"])
def test_rows_that_never_enter(by: Any) -> None:
    """As if the prompt had only the rows that stay; which ones depends on the prompt, and on the seed."""
    model, inputs = FAMILIES["llava"].build(LAYERS), FAMILIES["llava"].inputs(ONE)
    visual = visual_mask(inputs)[0]
    dropping = Dropping(0, 0.75, by)
    held: list[Tensor] = []
    with dropping_tokens(model, dropping):
        handle = model.get_decoder().register_forward_pre_hook(
            lambda m, a, k: held.append(k["inputs_embeds"]), with_kwargs=True
        )
        result = logits(model, inputs)[0, -1]
        handle.remove()
        assert torch.equal(result, logits(model, inputs)[0, -1])
    places = visual.nonzero().flatten()
    if by == "diverse":
        chosen = torch.tensor(farthest(held[0][0, places], 4))
    else:
        seed = zlib.crc32(inputs["input_ids"][0].numpy().tobytes())
        chosen = torch.randperm(16, generator=torch.Generator().manual_seed(seed))[:4]
        with dropping_tokens(model, Dropping(0, 0.75, by, seed=1)):
            assert not torch.allclose(logits(model, inputs)[0, -1], result, atol=1e-4)
    stay = torch.cat([(~visual).nonzero().flatten(), places[chosen]]).sort().values
    assert torch.allclose(result, without(model, inputs, stay), atol=1e-5)


def test_decode_steps_do_not_see_the_rows_that_left() -> None:
    """Token for token what the prompt with the tokens so far gives in one pass."""
    model, inputs = FAMILIES["llava"].build(LAYERS), FAMILIES["llava"].inputs(UNEVEN)
    counts = (visual_mask(inputs).sum(1) // 16).tolist()  # images of each prompt
    with dropping_tokens(model, Dropping(1, 1.0)):
        answers = greedy(model, inputs, 4, ("a", "b"))
        for i, answer in enumerate(answers):
            alone = {k: v[i : i + 1] for k, v in FAMILIES["llava"].inputs(UNEVEN).items() if k != "pixel_values"}
            alone["pixel_values"] = inputs["pixel_values"][sum(counts[:i]) : sum(counts[: i + 1])]
            for n, token in enumerate(answer):
                tail = torch.tensor([answer[:n]], dtype=torch.int64)
                more = {**alone, "input_ids": torch.cat([alone["input_ids"], tail], 1)}
                more["attention_mask"] = torch.cat([alone["attention_mask"], torch.ones_like(tail)], 1)
                scores = logits(model, more)[0, -1]
                scores[IMAGE] = -torch.inf
                assert int(scores.argmax()) == token


def test_models_and_layers_that_do_not_fit() -> None:
    model = FAMILIES["llava"].build(2)
    with (
        pytest.raises(OpSkipError, match="rows are chosen by the layer before layer 0, and there is none"),
        dropping_tokens(model, Dropping(0, 0.5)),
    ):
        pass
    with (
        pytest.raises(OpSkipError, match="dropping: Linear has no text decoder whose attention can be replaced"),
        dropping_tokens(nn.Linear(2, 2), Dropping(0, 1.0)),
    ):
        pass
    assert all(layer.self_attn.config._attn_implementation == "sdpa" for layer in decoder_layers(model))
