"""Progress without a terminal: a line for each stage that lasts, then one now and then, and none where it is quiet."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from opskip_compile.output import progress as module
from opskip_compile.output.progress import progress


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST", 0.05)
    monkeypatch.setattr(module, "EVERY", 0.4)


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not there():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_a_stage_that_lasts_is_named_and_then_counted(soon: None) -> None:
    """Also while nobody calls `step`; what has gone by before it was due is left out."""
    out = io.StringIO()
    with progress(Console(file=out)) as step:
        step("a moment", 0, 0)
        step("loading the model", 0, 0)
        until(lambda: out.getvalue().count("loading the model") == 2)
        step("answering", 0, 64)
        step("answering", 12, 64)
        until(lambda: "answering" in out.getvalue())
    lines = out.getvalue().splitlines()
    assert lines[0] == lines[1] == "opskip [0:00] loading the model"
    assert re.fullmatch(r"opskip \[0:\d\d\] answering: 12 of 64", lines[-1])
    assert "a moment" not in out.getvalue()


def test_short_stages_in_turn_are_a_line_now_and_then(soon: None) -> None:
    out = io.StringIO()
    with progress(Console(file=out)) as step:
        began = time.monotonic()
        while not out.getvalue():
            assert time.monotonic() < began + 20
            for what in ("measuring", "growing"):
                step(what, 1, 2)
        assert time.monotonic() - began >= 0.35
    assert len(out.getvalue().splitlines()) == 1


def test_quiet_terminals_and_short_work(soon: None) -> None:
    """No line in any of them, and no thread goes on."""
    threads = threading.active_count()
    for console in (Console(file=io.StringIO(), quiet=True), Console(file=io.StringIO(), force_terminal=True)):
        with progress(console) as step:
            step("work", 0, 2)
            time.sleep(0.1)
        assert "opskip [" not in console.file.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(KeyError), progress(Console(file=(out := io.StringIO()))) as step:
        step("work", 0, 2)
        raise KeyError
    assert not out.getvalue()
    assert threading.active_count() == threads


def test_nobody_reads_it(soon: None) -> None:
    """The work goes on when its log is closed."""
    out = io.StringIO()
    with progress(Console(file=out)) as step:
        out.close()
        step("work", 0, 2)
        time.sleep(0.2)
        step("work", 1, 2)
