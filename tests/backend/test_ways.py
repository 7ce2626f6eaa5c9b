"""Ways to compile other than the whole decoder at once: layer by layer, exported, and after a mistake of a pass."""

from __future__ import annotations

import warnings

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.errors import OptionError
from tests.helpers.families import FAMILIES, UNEVEN, visual_mask
from tests.helpers.own_decoder import EAGER, Decoder, visual

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.mark.parametrize("pass_", ["match_operators", "insert_skips", "cancel_pairs"])
def test_a_pass_that_fails_leaves_the_graph_dense(pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours costs speed and one warning; under strict it is raised."""

    def broken(*args: object) -> object:
        raise KeyError("a mistake")

    monkeypatch.setattr(f"opskip_compile.passes.steps.{pass_}", broken)
    model, arguments = Decoder(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    options = {"schedule": "silent:0", **EAGER}
    with pytest.warns(opskip.NothingSkippedWarning, match="KeyError: 'a mistake'"):
        got = torch.compile(model, backend="opskip", options=options)(*arguments)
    assert torch.equal(got, model(*arguments))
    assert "a pass failed" in opskip.last_report().reason
    torch._dynamo.reset()
    with pytest.raises(Exception, match="a mistake"):
        torch.compile(model, backend="opskip", options={**options, "strict": True})(*arguments)


def test_a_rewritten_graph_that_can_not_be_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The captured graph is lowered instead; what would fail anyway is raised."""
    model, arguments = Decoder(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))

    def lower(gm: torch.fx.GraphModule, inputs: object, config: object) -> object:
        if any("select_rows" in str(node.target) for node in gm.graph.nodes):
            raise RuntimeError("no code for this")
        gm.recompile()
        return gm.forward

    monkeypatch.setattr("opskip_compile._compat.inductor", lower)
    with pytest.warns(opskip.NothingSkippedWarning, match="can't be lowered: RuntimeError: no code for this"):
        got = torch.compile(model, backend="opskip", options={"schedule": "silent:0"})(*arguments)
    assert torch.equal(got, model(*arguments))
    assert not opskip.last_report().rewritten
    torch._dynamo.reset()
    with pytest.raises(Exception, match="no code for this"):
        torch.compile(model, backend="opskip", options={"schedule": "silent:0", "strict": True})(*arguments)


def test_layers_compiled_alone_stay_dense_and_say_so() -> None:
    """Nothing in the graph of one layer tells which rows are visual; a text-only decode step warns of nothing."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    want = model(**inputs).logits
    for layer in model.get_decoder().layers:
        layer.compile(backend="opskip", options={"schedule": "silent:0-1", **EAGER})
    with pytest.warns(opskip.NothingSkippedWarning, match="regional=True"):
        got = model(**inputs).logits
    assert torch.equal(got, want)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        model(input_ids=torch.tensor([[5]]))


@pytest.mark.parametrize("name", ["qwen3_vl", "llava"])
def test_regional(name: str) -> None:
    """Layer by layer: the reports number the layers of the whole decoder, and text prompts and steps are dense."""
    family, spec = FAMILIES[name], "silent:2 attend:0"
    model, inputs, text = family.build(4), family.inputs(), family.inputs(((9,),))
    dense = model(**text).logits
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        want = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        logits = model(**inputs).logits
    opskip.compile(model, spec, regional=True, options=EAGER)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        assert (model(**inputs).logits - logits).abs().max() <= 1e-4 * logits.abs().max()
        done = [report for report in opskip.reports() if report.rewritten]
        assert [report.skipped for report in done] == [("0.ffn",), ("2.attention", "2.ffn")]
        assert {report.num_layers for report in done} == {4}
        assert (model(**text).logits - dense).abs().max() <= 1e-5 * dense.abs().max()
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), want)
    opskip.remove(model)
    assert torch.equal(model(**text).logits, dense)
    assert not any("forward" in vars(layer) for layer in model.get_decoder().layers)


def test_regional_needs_layers() -> None:
    with pytest.raises(opskip.OptionError, match="regional"):
        opskip.compile(Decoder(), "silent:0", regional=True)
    for bad in (3, (2, 2), (0, "1")):
        with pytest.raises(opskip.OptionError, match=r"options\.layer"):
            opskip.Settings.parse({"layer": bad})


def test_export_carries_the_mark() -> None:
    model, mask = Decoder(), visual(1, 12, 2, 8)
    hidden = torch.randn(1, 12, 16)
    program = torch.export.export(model, (hidden, mask)).module()
    assert torch.equal(program(hidden, mask), model(hidden, mask))
    fast = torch.compile(program, backend="opskip", options={"schedule": "silent:0-1", **EAGER})
    hidden = torch.randn(1, 12, 16)
    assert (fast(hidden, mask) - model(hidden, mask, "0a0f1a1f")).abs().max() <= 1e-5
    assert opskip.last_report().row_source == "mark_visual"
    assert not opskip.last_report().remaining()


def test_layers_in_subgraphs_stay_dense_and_say_so() -> None:
    """Activation checkpointing is captured as one graph for each layer, where the whole model is compiled."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2).train(), family.inputs()
    model.gradient_checkpointing_enable()
    dense = model(**inputs, use_cache=False).logits
    fast = torch.compile(model, backend="opskip", options={"schedule": "silent:0-1", **EAGER})
    words = r"layers are in subgraphs.*opskip_compile\.compile\(model\) puts its code inside"
    with torch.enable_grad(), pytest.warns(opskip.NothingSkippedWarning, match=words):
        got = fast(**inputs, use_cache=False).logits
    assert (got - dense).abs().max() <= 1e-5 * dense.abs().max()


def test_prefill_only_leaves_decode_steps_and_text_alone() -> None:
    """The prompt with its image is compiled, nothing else is, and the tokens are the same."""
    model, inputs = FAMILIES["llava"].build(3), FAMILIES["llava"].inputs(UNEVEN)
    whole = opskip.compile(model, "silent:1", options={"lower": "eager"}).generate(**inputs, max_new_tokens=4)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    opskip.compile(model, "silent:1", prefill_only=True, options={"lower": "eager"})
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), whole)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    model(input_ids=torch.ones(1, 6, dtype=torch.int64))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    with pytest.raises(OptionError, match="prefill_only: Linear is compiled whole"):
        opskip.compile(torch.nn.Linear(2, 2), "none", prefill_only=True)
