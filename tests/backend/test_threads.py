"""Several threads and several models in one process: every call gets its own model's schedule and its own mask.

The oracle and the dense model run before any thread starts. LLaVA is compiled whole here: its tower records hidden
states, which transformers 5.23 does in a global variable as long as some thread is compiling.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.backend.reports import REPORTS
from tests.helpers.caches import CACHE
from tests.helpers.families import FAMILIES, visual_mask

pytestmark = pytest.mark.usefixtures("fresh")
LAYERS = 2
SPECS = ("silent:1", "transform:0 attend@through_visual:1", "attend:0-1", "silent@through_visual:0")
LAYOUTS = (((3, 5),), ((5, 3),), ((1, 7),), ((6, 2),))  # images at four places of prompts of one length
EAGER = {"lower": "eager"}


@pytest.fixture(autouse=True)
def dense_while_threads_run() -> Iterator[None]:
    """Threads are told in `together` to keep no gradients; a failure must not leave a thread behind."""
    before = threading.active_count()
    yield
    assert threading.active_count() <= before


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Run each job in a thread of its own, all from the same moment on; raises what a job raised."""
    gate, results, errors = threading.Barrier(len(jobs)), [None] * len(jobs), list[BaseException]()

    def run(i: int, job: Callable[[], Any]) -> None:
        try:
            # A patch of Dynamo's config holds for one thread. transformers wraps every forward in one function, which
            # eight compiles are too few for; past them Dynamo runs it eagerly, and a merge in it marks no rows.
            with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=64):
                gate.wait()
                results[i] = job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i, job)) for i, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def outputs(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    found = model(**inputs)
    return [found.logits, *(t for layer in found[CACHE].layers for t in (layer.keys, layer.values))]


def wanted(model: nn.Module, inputs: dict[str, Tensor], spec: str) -> list[Tensor]:
    with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        return outputs(model, inputs)


def close(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    return all(bool((a - b).abs().max() <= 1e-4 * b.abs().max()) for a, b in zip(got, want, strict=True))


def assert_apart(wants: Sequence[Sequence[Tensor]]) -> None:
    """What is wanted of different threads differs, so that a mix-up shows."""
    assert not any(close(a, b) for i, a in enumerate(wants) for b in wants[:i] if a[0].shape == b[0].shape)


@pytest.mark.parametrize(
    ("names", "way"),
    [
        (("qwen3_vl",) * 4, "opskip.compile"),
        (("qwen3_vl", "qwen2_5_vl") * 2, "opskip.compile"),
        (("llava", "llava"), "torch.compile"),
    ],
)
def test_threads_with_models_of_their_own(names: Sequence[str], way: str) -> None:
    models = [FAMILIES[name].build(LAYERS) for name in names]
    inputs = [FAMILIES[name].inputs(LAYOUTS[0], seed=0) for name in names]
    specs = SPECS[: len(names)]
    wants = [wanted(*each) for each in zip(models, inputs, specs, strict=True)]
    assert_apart(wants)
    count = REPORTS.count

    def job(i: int) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            if way == "opskip.compile":
                call: Any = opskip.compile(models[i], specs[i], options=EAGER)
            else:
                call = torch.compile(models[i], backend="opskip", options={"schedule": specs[i], **EAGER})
            results = [outputs(call, inputs[i]) for _ in range(3)]
            assert all(close(result, results[0]) for result in results)
            return results[-1]

        return run

    for got, want in zip(together(*map(job, range(len(names)))), wants, strict=True):
        assert close(got, want)
    made = REPORTS.since(count)
    assert [report.number for report in made] == list(range(count + 1, REPORTS.count + 1))
    done = [report for report in made if report.rewritten]
    assert {report.schedule for report in done} == {*specs}
    for report in done:
        states = opskip.Schedule.from_spec(report.schedule).resolve(LAYERS)
        assert report.layer_states() == tuple(state.state for state in states)
    assert opskip.last_report().number == max(report.number for report in made if report.operators)


@pytest.mark.parametrize(
    ("name", "way", "lengths"),
    [
        ("qwen3_vl", "opskip.compile", "several"),
        ("llava", "model.compile", "one"),
        ("qwen2_5_vl", "opskip.compile", "one"),
    ],
)
def test_one_compiled_model_in_threads_with_masks_of_their_own(name: str, way: str, lengths: str) -> None:
    family, spec = FAMILIES[name], "silent:1 transform@through_visual:0"
    model = family.build(LAYERS)
    layouts = LAYOUTS if lengths == "one" else (((3, 5),), ((2, 9),), ((4, 2), (1, 6)), ((2, 2, 2),))
    inputs = [family.inputs(layout, seed=i) for i, layout in enumerate(layouts)]
    wants = [wanted(model, each, spec) for each in inputs]
    assert_apart(wants)
    if way == "opskip.compile":
        opskip.compile(model, spec, options=EAGER)
    else:
        model.compile(backend="opskip", options={"schedule": spec, **EAGER})

    def job(i: int) -> Callable[[], list[list[Tensor]]]:
        return lambda: [outputs(model, inputs[i]) for _ in range(4)]

    for results, want in zip(together(*map(job, range(4))), wants, strict=True):
        assert all(close(got, want) for got in results)


def test_a_prompt_without_images_beside_one_with_images() -> None:
    family, spec = FAMILIES["qwen3_vl"], "silent:0-1"
    model, inputs = family.build(LAYERS), family.inputs(LAYOUTS[0])
    text = family.inputs(((24,),))
    wants = [wanted(model, inputs, spec), outputs(model, text)]
    opskip.compile(model, spec, options=EAGER)
    jobs = [lambda: [outputs(model, inputs) for _ in range(4)], lambda: [outputs(model, text) for _ in range(4)]]
    for results, want in zip(together(*jobs), wants, strict=True):
        assert all(close(got, want) for got in results)


def test_generate_in_threads() -> None:
    family, spec = FAMILIES["qwen3_vl"], "silent:1 transform:0"
    model = family.build(LAYERS)
    inputs = [family.inputs(layout, seed=i) for i, layout in enumerate(LAYOUTS[:2])]
    more = {"max_new_tokens": 4, "do_sample": False}
    wants = []
    for each in inputs:
        with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(each)):
            wants.append(model.generate(**each, **more))
    opskip.compile(model, spec, options=EAGER)
    got = together(*(lambda each=each: model.generate(**each, **more) for each in inputs))
    assert all(torch.equal(a, b) for a, b in zip(got, wants, strict=True))


@pytest.mark.parametrize("way", ["opskip.compile", "model.compile", "torch.compile"])
def test_two_models_of_one_class_with_schedules_of_their_own(way: str) -> None:
    family = FAMILIES["llava"]
    specs = SPECS[:2]
    models, inputs = [family.build(LAYERS) for _ in specs], family.inputs()
    wants = [wanted(model, inputs, spec) for model, spec in zip(models, specs, strict=True)]
    dense = outputs(models[0], inputs)
    assert_apart([dense, *wants])
    calls: list[Any] = []
    for turn in range(2):
        for i, (model, spec) in enumerate(zip(models, specs, strict=True)):
            if turn == 0:
                options = {"schedule": spec, **EAGER}
                if way == "opskip.compile":
                    calls.append(opskip.compile(model, spec, options=EAGER))
                elif way == "model.compile":
                    model.compile(backend="opskip", options=options)
                    calls.append(model)
                else:
                    calls.append(torch.compile(model, backend="opskip", options=options))
            for j in (i, 0, i):
                assert close(outputs(calls[j], inputs), wants[j])
    if way == "opskip.compile":
        opskip.remove(models[0])
        assert close(outputs(models[0], inputs), dense)
        assert close(outputs(models[1], inputs), wants[1])


def test_one_model_under_two_schedules_at_once() -> None:
    """Two compiled callables of one module."""
    family = FAMILIES["llava"]
    model, inputs = family.build(LAYERS), family.inputs()
    wants = [wanted(model, inputs, spec) for spec in SPECS[:2]]
    assert_apart(wants)
    calls = [torch.compile(model, backend="opskip", options={"schedule": spec, **EAGER}) for spec in SPECS[:2]]
    for _ in range(2):
        assert all(close(outputs(call, inputs), want) for call, want in zip(calls, wants, strict=True))


def test_explain_in_threads_leaves_no_setting_behind() -> None:
    family = FAMILIES["qwen3_vl"]
    models, inputs = [family.build(LAYERS) for _ in SPECS], family.inputs()
    limit = torch._dynamo.config.recompile_limit
    for model in models:
        model(**inputs)  # transformers puts hooks on the modules in their first call, which is not for threads

    def job(i: int) -> Callable[[], opskip.Report]:
        return lambda: opskip.explain(models[i], inputs, SPECS[i])

    for report, spec in zip(together(*map(job, range(4))), SPECS, strict=True):
        assert report.schedule == spec
        assert report.layer_states() == tuple(s.state for s in opskip.Schedule.from_spec(spec).resolve(LAYERS))
    assert torch._dynamo.config.recompile_limit == limit
