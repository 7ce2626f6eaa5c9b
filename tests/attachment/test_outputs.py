"""What a forward is asked for besides logits, hidden states and attentions, with layers counted from the end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.errors import OptionError
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.own_decoder import EAGER, Decoder, visual

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "late:0.5"


def outputs(model: nn.Module, inputs: Mapping[str, Tensor], **asked: bool) -> list[Tensor]:
    found = model(**inputs, **asked)
    return [found.logits, *(tensor for name in asked for tensor in found[name.removeprefix("output_")])]


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize(
    ("family", "kernel", "asked"),
    [
        ("llava", "sdpa", ["output_hidden_states"]),
        ("qwen3_vl", "sdpa", ["output_hidden_states"]),
        ("llava", "eager", ["output_attentions", "output_hidden_states"]),
        ("qwen3_vl", "eager", ["output_attentions"]),
        ("llava", "sdpa", ["output_attentions"]),  # transformers says that this kernel gives none, and returns none
    ],
)
def test_it_skips_and_gives_what_the_oracle_gives(family: str, kernel: str, asked: list[str], regional: bool) -> None:
    """The kept rows of the attentions, too; and the plain call after it skips as well."""
    model, inputs = FAMILIES[family].build(2), FAMILIES[family].inputs()
    model.set_attn_implementation(kernel)
    more = dict.fromkeys(asked, True)
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want, logits = outputs(model, inputs, **more), model(**inputs).logits
    opskip.compile(model, SPEC, regional=regional, options=EAGER)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        got = outputs(model, inputs, **more)
        again = model(**inputs).logits
    assert len(got) == len(want)
    for mine, theirs in zip([*got, again], [*want, logits], strict=True):
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    done = [report for report in opskip.reports() if report.rewritten]
    assert {report.skipped for report in done} == {("1.attention", "1.ffn")}
    assert len(done) == 2, "one graph for each of the two calls"


@pytest.mark.parametrize("regional", [False, True])
def test_past_the_recompile_limit_nothing_is_missing(regional: bool) -> None:
    """Where Dynamo leaves the decoder uncompiled, transformers collects its outputs as without it."""
    family = FAMILIES["llava"]
    model = family.build(2)
    model.set_attn_implementation("eager")
    opskip.compile(model, "none", regional=regional, options=EAGER, dynamic=False)
    asked = {"output_attentions": True, "output_hidden_states": True}
    with torch._dynamo.config.patch(recompile_limit=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in (3, 4, 5):
            inputs = family.inputs(((rows, 5),))
            got = model(**inputs, **asked)
            assert len(got.attentions) == 2
            assert len(got.hidden_states) == 3
            assert got.attentions[0].shape[-1] == inputs["input_ids"].shape[1]


def test_the_count_of_the_layers_only_confirms() -> None:
    """A graph of another number of layers stays a doubtful one: half of a decoder is not taken for all of it."""
    model, arguments = Decoder(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    model.last = nn.Identity()  # the residual stream itself, as a graph with hidden states for results returns it
    options = {"schedule": SPEC, **EAGER, "in_place": True}
    want = model(*arguments, "1a1f")
    got = torch.compile(model, backend="opskip", options={**options, "num_layers": 2})(*arguments)
    assert (got - want).abs().max() <= 1e-5
    torch._dynamo.reset()
    with pytest.warns(opskip.NothingSkippedWarning, match=r"no final norm.*\. opskip_compile\.compile\(model, reg"):
        got = torch.compile(model, backend="opskip", options={**options, "num_layers": 4})(*arguments)
    assert torch.equal(got, model(*arguments))
    for bad in (0, "2", True):
        with pytest.raises(OptionError, match=r"options\.num_layers"):
            opskip.Settings.parse({"num_layers": bad})
