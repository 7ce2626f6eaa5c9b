"""What the backend replaces in transformers, Dynamo and Inductor, and that nothing of it stays."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.callback import callback_handler
from torch._dynamo.utils import counters
from torch._higher_order_ops.utils import registered_hop_fake_fns
from torch._inductor.scheduler import SchedulerNode
from torch._inductor.utils import run_and_get_code
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

import opskip_compile as opskip
from opskip_compile._compat import Patch, invoke_region, regions, scheduler
from opskip_compile.backend import by_name, capture, entry
from opskip_compile.passes.runtime import NAMES_ROWS
from tests.helpers.families import FAMILIES

EAGER = {"lower": "eager"}
QWEN = FAMILIES["qwen3_vl"]


@pytest.fixture(autouse=True)
def alone(fresh: None) -> Iterator[None]:
    """No other test's use of the backend, and put back afterwards."""
    used = capture._STATE.kept
    opskip.unpatch()
    yield
    opskip.unpatch()
    if used:
        capture.install()


def replaceable() -> tuple[object, ...]:
    """Everything that may be replaced, as it is at present."""
    return (
        vars(Qwen3VLTextModel)["_deepstack_process"],
        vars(SchedulerNode)["recompute_size_and_body"],
        registered_hop_fake_fns[invoke_region],
        *callback_handler.start_callbacks,
        *torch._dynamo.config.ignore_logging_functions,
    )


def method() -> object:
    return vars(Qwen3VLTextModel)["_deepstack_process"]


def test_the_last_model_takes_everything_with_it() -> None:
    before = replaceable()
    first, second, inputs = QWEN.build(2), QWEN.build(2), QWEN.inputs()
    opskip.compile(first, "silent:0", options=EAGER)
    opskip.compile(second, "silent:1", options=EAGER)
    opskip.compile(second, "silent:0-1", options=EAGER)
    assert method() is not before[0] and len(callback_handler.start_callbacks) == len(before) - 3 + 1
    skipped = second(**inputs).logits
    opskip.remove(first)
    assert method() is not before[0], "another model still uses it"
    opskip.remove(second)
    assert replaceable() == before
    opskip.compile(second, "silent:0-1", options=EAGER)
    assert torch.equal(second(**inputs).logits, skipped)
    opskip.remove(second)
    assert replaceable() == before


def test_explain_leaves_nothing() -> None:
    before = replaceable()
    assert opskip.explain(QWEN.build(2), QWEN.inputs(), "silent:0-1").skipped
    assert replaceable() == before


def test_unpatch_leaves_compiled_code_as_it_is() -> None:
    before, model, inputs = replaceable(), QWEN.build(2), QWEN.inputs()
    opskip.compile(model, "silent:0-1", options=EAGER)
    skipped = model(**inputs).logits
    graphs = counters["stats"]["unique_graphs"]
    opskip.unpatch()
    opskip.unpatch()
    assert replaceable() == before
    assert torch.equal(model(**inputs).logits, skipped)
    assert counters["stats"]["unique_graphs"] == graphs, "not compiled again"
    opskip.remove(model)
    assert torch.equal(model(**inputs).logits, QWEN.build(2)(**inputs).logits)


def test_by_its_name_it_is_on_before_anything_is_traced() -> None:
    before = replaceable()
    for _ in range(2):  # Dynamo loads the entry point once; unpatch makes it load it again
        torch.compile(lambda x: x, backend="opskip")
        assert method() is not before[0]
        model = opskip.compile(QWEN.build(2), "silent:0", options=EAGER)
        opskip.remove(model)
        assert method() is not before[0], "the user of the name can't be asked"
        opskip.unpatch()
        assert replaceable() == before


def test_the_entry_point_is_made_on_demand() -> None:
    before = method()
    with pytest.raises(AttributeError, match="no attribute 'opskipp'"):
        _ = by_name.opskipp
    assert "opskip" not in vars(by_name) and method() is before
    assert by_name.opskip is None and method() is not before
    assert lookup_backend("opskip") is entry.opskip


def test_threads_may_use_the_name_first() -> None:
    for _ in range(20):
        opskip.unpatch()
        barrier, backends = threading.Barrier(4), list[object]()

        def look(barrier: threading.Barrier = barrier, backends: list[object] = backends) -> None:
            barrier.wait()
            backends.append(lookup_backend("opskip"))

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert backends == [entry.opskip] * 4


def test_deepstack_needs_the_other_form() -> None:
    """Without it Dynamo breaks the graph at every level of DeepStack."""
    hidden, rows = torch.randn(1, 6, 8), torch.tensor([[False, True, True, False, True, False]])
    features, graphs = torch.randn(3, 8), list[torch.fx.GraphModule]()

    def keep(gm: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward

    def add(hidden: Tensor) -> Tensor:
        out: Tensor = Qwen3VLTextModel._deepstack_process(None, hidden * 1, rows, features) * 1  # type: ignore[arg-type]
        return out

    dense = add(hidden)
    for on in (False, True):
        graphs.clear()
        torch._dynamo.reset()
        if on:
            capture.install()
        assert torch.equal(torch.compile(add, backend=keep)(hidden), dense)
        assert (len(graphs) == 1) is on
    assert [node for node in graphs[0].graph.nodes if node.target in NAMES_ROWS]


@pytest.mark.inductor
def test_inductor_is_mended_for_our_graphs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense code is the same before, between and after, and the patches are on while our graph is lowered only."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    seen, before = list[bool](), replaceable()
    enter = Patch.__enter__

    def entered(self: Patch) -> Patch:
        enter(self)
        seen.append(self.is_on)
        return self

    monkeypatch.setattr(Patch, "__enter__", entered)
    hidden, weight, index = torch.randn(1, 8, 16), torch.randn(16, 16), torch.tensor([1, 3])

    def dense(hidden: Tensor) -> Tensor:
        rows = torch.zeros_like(hidden).index_add(1, index, (hidden @ weight)[:, index].relu())
        return (hidden + rows).softmax(-1)

    def code() -> str:
        torch._dynamo.reset()
        with torch.compiler.config.patch(force_disable_caches=True):  # type: ignore[attr-defined]
            _, sources = run_and_get_code(torch.compile(dense), hidden)
        return re.sub(r"\S*/\S*|\b[a-z0-9]{20,}\b|# .*", "", "\n".join(sources))  # without names of files

    first = code()
    assert not seen
    model = opskip.compile(QWEN.build(1), "silent:0")
    model(**QWEN.inputs())
    assert seen and all(seen[i] for i in range(len(seen)) if scheduler.order_of_mutations.needed)
    assert replaceable()[1:3] == before[1:3], "off again, though a compiled model is alive"
    assert code() == first
    opskip.remove(model)
    assert replaceable() == before
    assert code() == first
    assert not regions.remember_shapes.is_on
