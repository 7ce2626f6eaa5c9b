"""Several processes of one calibration start from the same knowledge, however far apart they start."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from torch import distributed

from opskip_compile.calibration.journal import Journal

ABOUT = {"data": "x"}


def _start(rank: int, folder: str, shared: bool) -> None:
    """The second process is late; the first has put its finding in by then, if it could go on alone."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    if rank == 1:
        time.sleep(1)
    path = Path(folder) / ("journal" if shared else f"of-{rank}/journal")
    path.parent.mkdir(exist_ok=True)
    journal = Journal(path, ABOUT, rank)
    journal.put("score", rank, rank)
    journal.close()
    distributed.destroy_process_group()
    assert journal.get("score", 1 - rank) is None
    assert [journal.get("score", item) for item in (2, 3)] == [20, None if shared else 30]


@pytest.mark.parametrize("shared", [True, False], ids=["one file system", "a disk each"])
def test_all_processes_know_the_same_at_the_start(tmp_path: Path, shared: bool) -> None:
    """Else one of them takes part in an exchange that another one leaves out."""
    for name, item in ({"journal": 2} if shared else {"of-0/journal": 2, "of-1/journal": 3}).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        earlier = Journal(path, ABOUT)
        earlier.put("score", item, 10 * item)
        earlier.close()
    mp.spawn(_start, (str(tmp_path), shared), nprocs=2)
