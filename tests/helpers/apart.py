"""Run a check in a process of its own, so that nothing that it leaves behind in PyTorch reaches other tests.

Some of PyTorch's samples change the process: after ``view`` has been called with all of them, fake tensors of symbolic
sizes no longer work.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def apart(check: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """``check(*args, **kwargs)`` in a copy of this process, with all that is changed in it for the moment."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        try:
            there.send((check(*args, **kwargs), ""))
        except BaseException:
            there.send((None, traceback.format_exc()))

    process = context.Process(target=run)
    process.start()
    there.close()
    result, error = here.recv()
    process.join()
    assert not error, error
    return result  # type: ignore[no-any-return]
