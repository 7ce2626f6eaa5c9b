"""Column "ways to compile", once more: lowered by Inductor, as users have it.

A graph that is lowered eagerly hides what Inductor asks of Dynamo, such as another capture where a float is a constant.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._dynamo.exc import InternalTorchDynamoError
from torch._dynamo.utils import counters

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, ONE_IMAGE, visual_mask
from tests.helpers.support.basic import forward
from tests.helpers.support.forms import Member, form
from tests.helpers.support.outcome import ABSENT, SPEC, Install, Outcome, measure

COLUMN = "ways to compile"
ROOT = Path(__file__).parents[3]


def lowered(**given: Any) -> Install:
    """`opskip.compile` with these keywords, lowered by Inductor."""

    def install(model: nn.Module, spec: str) -> nn.Module:
        return opskip.compile(model, spec, **given)

    return install


def whole(**given: Any) -> Install:
    """``torch.compile`` of the whole model with these keywords, lowered by Inductor."""

    def install(model: nn.Module, spec: str) -> Any:
        options = {"schedule": spec, **given.get("options", {})}
        return torch.compile(model, backend="opskip", **{**given, "options": options})

    return install


def run(family: Member, install: Install) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)
    return measure(family.build(), forward(inputs), visual_mask(inputs), install=install)


@form(COLUMN, "by Inductor: dynamic=True", slow=True)
def dynamic(family: Member) -> Outcome:
    return run(family, lowered(dynamic=True))


@form(COLUMN, "by Inductor: dynamic=True, torch.compile of the whole model", slow=True)
def dynamic_whole(family: Member) -> Outcome:
    try:
        return run(family, whole(dynamic=True))
    except InternalTorchDynamoError:
        torch._dynamo.reset()
        try:
            torch.compile(family.build(), dynamic=True)(**family.inputs(ONE_IMAGE))
        except InternalTorchDynamoError as error:
            return Outcome(ABSENT, f"the dense model can't do it either: {str(error).splitlines()[0]}")
        raise


@form(COLUMN, "by Inductor: fullgraph=True", slow=True)
def fullgraph(family: Member) -> Outcome:
    return run(family, lowered(fullgraph=True))


@form(COLUMN, 'by Inductor: mode="max-autotune-no-cudagraphs"', slow=True)
def max_autotune(family: Member) -> Outcome:
    return run(family, lowered(mode="max-autotune-no-cudagraphs"))


@form(COLUMN, "by Inductor: freezing", slow=True)
def freezing(family: Member) -> Outcome:
    return run(family, lowered(options={"freezing": True}))


@form(COLUMN, "by Inductor: cpp_wrapper", slow=True)
def cpp_wrapper(family: Member) -> Outcome:
    return run(family, lowered(options={"cpp_wrapper": True}))


@form(COLUMN, "by Inductor: regional=True", slow=True)
def regional(family: Member) -> Outcome:
    return run(family, lowered(regional=True))


@form(COLUMN, "by Inductor: model.compile", slow=True)
def compile_method(family: Member) -> Outcome:
    def install(model: nn.Module, spec: str) -> nn.Module:
        model.compile(backend="opskip", options={"schedule": spec})
        return model

    return run(family, install)


@form(COLUMN, "by Inductor: out of AOTAutograd's cache", slow=True)
def cached(family: Member) -> Outcome:
    """Compiled, forgotten, and compiled again: the second time from the cache."""
    inputs, hits = family.inputs(ONE_IMAGE), []

    def install(model: nn.Module, spec: str) -> nn.Module:
        opskip.compile(model, spec)(**inputs)
        torch._dynamo.reset()
        counters.clear()
        return opskip.compile(model, spec)

    def call(model: Any) -> Sequence[Tensor]:
        result = forward(inputs)(model)
        hits.append(counters["aot_autograd"]["autograd_cache_hit"])
        return result

    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        outcome = measure(family.build(), call, visual_mask(inputs), install=install)
    assert max(hits) >= 1, "nothing came out of the cache"
    return outcome


@form(COLUMN, "by Inductor: in a second process, out of the cache of the first", slow=True)
def second_process(family: Member) -> Outcome:
    """Two new processes, one after the other; this one only tells what was skipped."""
    inputs, mine = family.inputs(ONE_IMAGE), family.build()

    def call(model: Any) -> Sequence[Tensor]:
        outputs = forward(inputs)(model)
        if "_opskip_compiled" not in vars(mine):
            return outputs
        with tempfile.TemporaryDirectory() as folder:
            first, second = (_in_a_process(family, Path(folder)) for _ in range(2))
        assert first["hits"] == 0 < second["hits"], "nothing came out of the cache"
        return [*second["outputs"]]

    return measure(mine, call, visual_mask(inputs), install=opskip.compile)


def _in_a_process(family: Member, folder: Path) -> dict[str, Any]:
    code = f"from tests.helpers.support.by_inductor import answer; answer({family.name!r}, {str(folder / 'out.pt')!r})"
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=environment)
    result: dict[str, Any] = torch.load(folder / "out.pt")
    return result


def answer(name: str, path: str) -> None:
    """What the second process does: the same model and prompt, compiled; outputs and cache hits go to ``path``."""
    family = FAMILIES[name]
    with torch.no_grad():
        model = opskip.compile(family.build(4), SPEC)
        outputs = [tensor.clone() for tensor in forward(family.inputs(ONE_IMAGE))(model)]
    torch.save({"outputs": outputs, "hits": counters["aot_autograd"]["autograd_cache_hit"]}, path)
