"""A pytest plug-in: every multimodal model that a test makes is compiled, and what each test did becomes one line.

    python -m pytest -p benchmarks.transformers_suite.plugin --suite-run RUN --suite-out FILE TESTS

``RUN`` is a name of `selection.RUNS`. A model is compiled when the outermost call that makes it returns: its class, or
``from_pretrained``. So whatever a test does to its model afterwards (save it, copy it, resize its embeddings, train it)
happens to a compiled one. A test that ended this process shows as a line that only says it began.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import opskip_compile as opskip
from benchmarks.transformers_suite.selection import FAMILIES, RUNS, selected
from opskip_compile.attachment.decoder import decoder_of
from opskip_compile.backend.reports import REPORTS
from opskip_compile.models.rows import visual_tokens

RECORDER = pytest.StashKey["Recorder"]()


def compile_what_is_made(schedule: str) -> Compiler:
    """From now on every multimodal model of transformers is compiled once it is complete."""
    from transformers import PreTrainedModel

    compiler = Compiler(schedule)
    load = PreTrainedModel.from_pretrained.__func__
    PreTrainedModel.from_pretrained = classmethod(compiler.around(load))
    return compiler


class Compiler:
    """Compiles models, and counts them."""

    def __init__(self, schedule: str) -> None:
        self.schedule, self.count = schedule, 0
        self._local = threading.local()
        self._wrapped: set[type] = set()

    def wrap(self, value: object) -> None:
        """If it is a class of models, its instances are compiled from now on, unless they are part of another model."""
        for base in value.__mro__ if isinstance(value, type) and issubclass(value, nn.Module) else ():
            if (
                "__init__" in vars(base)
                and base not in self._wrapped
                and base.__module__.startswith("transformers.models")
            ):
                self._wrapped.add(base)
                base.__init__ = self.around(base.__init__)

    def around(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """``make``, and then compile, unless the call is part of a larger one."""

        @functools.wraps(make)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            depth = getattr(self._local, "depth", 0)
            self._local.depth = depth + 1
            try:
                result = make(*args, **kwargs)
            finally:
                self._local.depth = depth
            if depth == 0:
                self.compile(args[0] if result is None else result[0] if isinstance(result, tuple) else result)
            return result

        return wrapped

    def compile(self, model: nn.Module) -> None:
        """Compile it, if it is a multimodal model with a text decoder."""
        if visual_tokens(model) and decoder_of(model) is not None:
            self.count += 1
            opskip.compile(model, self.schedule, options={"lower": "eager"})


class Recorder:
    """Writes two JSON lines a test: one when it begins, one when it has ended."""

    def __init__(self, out: Path, compiler: Compiler | None) -> None:
        self.out, self.compiler = out, compiler
        self.outcome, self.why = "passed", ""

    def line(self, **fields: Any) -> None:
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        name = test_name(item.nodeid)
        self.line(test=name)
        self.outcome, self.why = "passed", ""
        forget_earlier_tests()
        before, models = REPORTS.count, self.compiler.count if self.compiler else 0
        began = time.process_time()
        try:
            return (yield)
        finally:
            made = REPORTS.since(before)
            self.line(
                test=name,
                outcome=self.outcome,
                why=self.why,
                cpu=round(time.process_time() - began, 2),
                compiled=(self.compiler.count if self.compiler else 0) - models,
                graphs=REPORTS.count - before,
                skipped=sum(report.rewritten for report in made),
                reasons=sorted({report.reason for report in made if report.reason}),
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        subtest = hasattr(report, "context")  # the test goes on after it, and passes
        if report.skipped and self.outcome == "passed" and not subtest:
            self.outcome, self.why = "skipped", str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else "")
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.outcome, self.why = "failed", str(crash.message if crash is not None else report.longrepr)[:2000]


def forget_earlier_tests() -> None:
    """No compiled code of theirs, and no capture of outputs that one of them ended within."""
    from transformers.utils import output_capturing

    torch._dynamo.reset()
    output_capturing._active_collector.reset(None)


def test_name(nodeid: str) -> str:
    """Folder of the model, class and test."""
    path, _, rest = nodeid.partition("::")
    return f"{Path(path).parent.name}::{rest}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("transformers' suite")
    group.addoption("--suite-run", choices=tuple(RUNS), required=True)
    group.addoption("--suite-out", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    stand_in(config.rootpath)
    schedule = RUNS[config.getoption("--suite-run")]
    compiler = None if schedule is None else compile_what_is_made(schedule)
    config.stash[RECORDER] = Recorder(config.getoption("--suite-out"), compiler)
    config.pluginmanager.register(config.stash[RECORDER], "suite-recorder")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    classes = {family.test_class for family in FAMILIES.values()}
    others = [item for item in items if item.parent.name not in classes or not selected(item.name)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
    give_each_config_its_own_values()
    compiler = config.stash[RECORDER].compiler
    for module in {item.module for item in items} if compiler is not None else ():  # type: ignore[attr-defined]
        for value in vars(module).values():
            compiler.wrap(value)


def give_each_config_its_own_values() -> None:
    """Tests of models may be older than transformers here.

    Until 5.16 their base gives one and the same dict of rotary parameters to the vision config and to the text config,
    and the vision config of later versions writes into it.
    """
    tester = getattr(sys.modules.get("tests.multimodal_tester"), "MultiModalModelTester", None)
    if tester is not None:
        collect = tester._collect_kwargs
        tester._collect_kwargs = lambda self, *args: copy.deepcopy(collect(self, *args))


def stand_in(folder: Path) -> None:
    """The shared tests may be newer than the others: what they import for several devices may not be there yet."""
    name = "tests.distributed_testing_utils"
    if not (folder / f"{name.replace('.', '/')}.py").exists():
        module = types.ModuleType(name)
        module.__getattr__ = lambda attribute: None  # type: ignore[method-assign]
        sys.modules[name] = module
