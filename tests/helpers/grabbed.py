"""Both graphs of one decoder in a form that runs: what the backend captured, and what it made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

import opskip_compile as opskip
from opskip_compile.backend import entry as backend
from opskip_compile.passes.normalize.cleanup import copy_graph
from opskip_compile.passes.pipeline import Rewritten
from opskip_compile.report.report import Report


@dataclass
class Grabbed:
    """One compile.

    Attributes:
        before, after: runnable copies; ``after`` is ``before`` where nothing was rewritten.
        inputs: the values of the call, the same for both.
    """

    report: opskip.Report
    before: fx.GraphModule
    after: fx.GraphModule
    inputs: list[Any]

    def shapes(self, which: fx.GraphModule) -> dict[str, tuple[int, ...]]:
        """Run the graph and note the shape of every tensor by the name of its node."""
        found: dict[str, tuple[int, ...]] = {}

        class Noting(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                value = super().run_node(node)
                if isinstance(value, Tensor):
                    found[node.name] = tuple(value.shape)
                return value

        with torch.no_grad():
            Noting(which).run(*self.inputs[: len(which.graph.find_nodes(op="placeholder"))])
        return found


def grab(model: Callable[..., Any], inputs: Mapping[str, Any], spec: str) -> Grabbed:
    """Compile ``model`` with ``opskip_compile.compile``, run it once on ``inputs`` and keep its decoder's graphs."""
    found: list[Grabbed] = []
    real = backend.make_report

    def keeping(result: Rewritten, inputs: Sequence[Any], recompile: str) -> Report:
        report = real(result, inputs, recompile)
        gm = result.state.module
        before = fx.GraphModule(gm, copy_graph(result.state.captured))
        if report.operators:
            after = before if result.graph is None else fx.GraphModule(gm, copy_graph(result.graph))
            found.append(Grabbed(report, before, after, list(inputs)))
        return report

    torch._dynamo.reset()
    with mock.patch.object(backend, "make_report", keeping), torch.no_grad():
        assert isinstance(model, nn.Module)
        opskip.compile(model, spec, options={"lower": "eager"})
        model(**inputs)
        opskip.remove(model)
    return found[-1]
