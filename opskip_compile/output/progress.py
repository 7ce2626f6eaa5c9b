"""Where long work is: a bar in a terminal; elsewhere, in the log of a batch job, a line now and then."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Step = Callable[[str, int, int], None]  # what is done now, steps done, steps in all (0 if not known)
FIRST, EVERY = 2.0, 30.0  # seconds


@contextmanager
def progress(console: Console) -> Iterator[Step]:
    """A `Step` that shows on ``console`` how far the block is; nothing where that is quiet.

    In a terminal a bar, which is gone when the block ends. Elsewhere lines such as ``opskip [1:05] answering: 12 of
    64``: one for each stage that goes on for `FIRST` seconds, and then one every `EVERY` seconds, also while a single
    step goes on for minutes.
    """
    if console.quiet:
        yield lambda what, done, total: None
    elif console.is_terminal:
        with _bar(console) as step:
            yield step
    else:
        lines = _Lines(console)
        try:
            yield lines.step
        finally:
            lines.end()


@contextmanager
def _bar(console: Console) -> Iterator[Step]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        doing = ""

        def step(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing:
                doing = what
                bar.reset(task, description=what, total=total or None)
            bar.update(task, completed=done)

        yield step


class _Lines:
    """A thread of its own keeps the time, since nobody calls `step` while a model is loaded or compiled."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = threading.Condition()
        self._what, self._done, self._total, self._ended = "", 0, 0, False
        self._start = self._said = time.monotonic()  # when the last line was written
        self._due = math.inf  # when the stage is to be named
        self._thread = threading.Thread(target=self._run, name="opskip progress", daemon=True)
        self._thread.start()

    def step(self, what: str, done: int, total: int) -> None:
        with self._state:
            if what != self._what:
                self._due = time.monotonic() + FIRST
                self._state.notify()
            self._what, self._done, self._total = what, done, total

    def end(self) -> None:
        with self._state:
            self._ended = True
            self._state.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._state:
            while not self._ended:
                now = time.monotonic()
                due = min(self._due, self._said + EVERY) if self._what else math.inf
                if due > now:
                    self._state.wait(None if due == math.inf else due - now)
                    continue
                self._said, self._due = now, math.inf
                with suppress(OSError, ValueError):  # nobody reads it any more
                    print(self._line(now - self._start), file=self._console.file, flush=True)

    def _line(self, seconds: float) -> str:
        minutes, rest = divmod(round(seconds), 60)
        count = f": {self._done} of {self._total}" if self._total else ""
        return f"opskip [{minutes}:{rest:02}] {self._what}{count}"
