"""Several processes, one command: started by ``torchrun`` or ``accelerate launch``, they share its work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import typer

from opskip_compile.errors import OpSkipError

PATIENCE = timedelta(days=1)
"""For which a process waits for the others. Their parts of the work may differ by hours, and one of them times alone
what the others wait for; what fails in one of them is told to all, and the launcher ends all when one dies."""


@contextmanager
def processes() -> Iterator[bool]:
    """Together with the other processes, if there are any; one that fails ends all. Gives True in the process that
    speaks: it alone prints, writes, and says what failed."""
    from torch import cuda, distributed

    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not distributed.is_available():
        yield True
        return
    from opskip_compile.calibration.processes import Together

    ours = not distributed.is_initialized()
    if ours:
        distributed.init_process_group("nccl" if cuda.is_available() else "gloo", timeout=PATIENCE)
    if cuda.is_available():
        cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    first, together = distributed.get_rank() == 0, Together()
    try:
        with together:
            yield first
    except OpSkipError:
        if first or not together.told:
            raise
        raise typer.Exit(2) from None
    finally:
        if ours:
            distributed.destroy_process_group()
