"""``torch.compile`` around a model that `compile` has compiled, and the other way round: the decoder still skips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx, nn
from transformers import CompileConfig

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.own_decoder import EAGER

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:1"


def answer(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    logits: torch.Tensor = model(**inputs).logits
    return logits


@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called before"])
@pytest.mark.parametrize("order", ["torch last", "torch first", "model.compile last", "model.compile first"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_both(name: str, order: str, called: bool) -> None:
    family = FAMILIES[name]
    model, inputs = family.build(2), family.inputs()
    dense = answer(model, inputs)
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = answer(model, inputs)

    def by_torch(model: nn.Module) -> Any:
        if order.startswith("torch"):
            return torch.compile(model, backend="eager")
        model.compile(backend="eager")
        return model

    if order.endswith("last"):
        opskip.compile(model, SPEC, options=EAGER)
        if called:
            answer(model, inputs)
        both: Any = by_torch(model)
    else:
        both = by_torch(model)
        if called:
            answer(both, inputs)
        assert opskip.compile(both, SPEC, options=EAGER) is both
    count = len(opskip.reports())
    torch.testing.assert_close(answer(both, inputs), want)
    if not (called and order.endswith("last")):
        assert any(len(report.skipped) == 2 for report in opskip.reports()[count:])
    torch.testing.assert_close(answer(model, inputs), want)
    opskip.remove(both)
    torch.testing.assert_close(answer(both, inputs), dense)


def test_fullgraph_around_says_whose_decoder_it_is() -> None:
    family = FAMILIES["llava"]
    model, inputs = opskip.compile(family.build(2), SPEC, options=EAGER), family.inputs()
    with pytest.raises(Exception, match=r"opskip_compile\.compile has compiled"):
        torch.compile(model, backend="eager", fullgraph=True)(**inputs)


def test_a_step_of_a_users_own_around_the_model() -> None:
    """As a trainer does it: the compiled function is not the model, but calls it."""
    family = FAMILIES["llava"]
    model, inputs = opskip.compile(family.build(2), SPEC, options=EAGER), family.inputs()
    want = answer(model, inputs)

    @torch.compile(backend="eager")
    def step(**inputs: Any) -> torch.Tensor:
        return answer(model, inputs) * 2

    torch.testing.assert_close(step(**inputs), want * 2)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_generate_compiles_decode_steps_as_one_graph(name: str) -> None:
    """transformers compiles the steps of a static cache around the model: one graph, as without `opskip.compile`."""
    family, graphs = FAMILIES[name], []
    model, inputs = family.build(2), family.inputs()

    def around(gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        graphs.append(gm)
        return gm.forward

    config = CompileConfig(fullgraph=True, backend=around)
    config._compile_all_devices = True
    model.generation_config.compile_config = config
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = model.generate(**inputs, **options)
    torch._dynamo.reset()
    graphs.clear()
    opskip.compile(model, SPEC, options=EAGER)
    torch.testing.assert_close(model.generate(**inputs, **options), want)
    assert len(graphs) == 1
    assert len(opskip.last_report().skipped) == 2


@pytest.mark.parametrize("form", ["decoder", "layers", "as a whole"])
def test_a_decode_step_is_one_graph_with_what_is_around(form: str) -> None:
    family = FAMILIES["llava"]
    model, ids = family.build(2), torch.tensor([[5], [6]])
    if form == "as a whole":
        model = model.model.language_model
    want = model(input_ids=ids)[0]
    opskip.compile(model, "late:0.5", options=EAGER, regional=form == "layers")
    step = torch.compile(lambda ids: model(input_ids=ids)[0] * 2, backend="eager", fullgraph=True)
    torch.testing.assert_close(step(ids), want * 2)


def test_explain_of_what_torch_compile_gave() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    both = torch.compile(model, backend="eager")
    assert len(opskip.explain(both, inputs, SPEC).skipped) == 2
    opskip.compile(both, SPEC, options=EAGER)
    assert len(opskip.explain(both, inputs, "silent:0-1").skipped) == 4
    answer(both, inputs)
    assert len(opskip.last_report().skipped) == 2
