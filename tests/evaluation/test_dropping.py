"""Token dropping by hiding rows gives what the shorter sequence gives; hidden rows stay hidden while decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opskip_compile.errors import OpSkipError
from opskip_compile.evaluation.dropping import dropping_tokens
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
