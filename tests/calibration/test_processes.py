"""Several processes of one calibration: the same knowledge at the start, one result whatever their number."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed

import opskip_compile as opskip
from opskip_compile.calibration import costs, divergence_meter, latency
from opskip_compile.calibration.journal import Journal
from opskip_compile.errors import OpSkipError
from opskip_compile.models.oracle import decoder_layers
from tests.helpers.families import FAMILIES
from tests.helpers.planted import samples
from tests.helpers.processes import ends_at, several, split_model, with_heads

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


QUICK: dict[str, Any] = {"answer_tokens": 2, "controls": False, "whole_front": False}


@pytest.fixture(autouse=True, scope="module")
def prepared() -> Iterator[None]:
    """The decoder is captured once, by the process of which the others are copies, with one thread as they have."""
    real, known, threads = costs.compiled_report, {}, torch.get_num_threads()

    def report(model: Any, prompts: Any, keep: float = 0.0, levels: bool = False) -> Any:
        key = (len(decoder_layers(model)), keep, levels)
        if key not in known:
            known[key] = real(model, prompts, keep, levels)
        return copy.copy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "compiled_report", report)
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


def calibrated(rank: int, folder: Path, journal: Path | None, options: dict[str, Any]) -> tuple[bytes, str]:
    """The bytes of the schedule's file, and all that was found but for what it took."""
    result = opskip.calibrate(FAMILIES["llava"].build(3), samples("llava", 5), **options, resume=journal)
    result.schedule.save(folder / f"{rank}.json")
    report = {name: value for name, value in result.report.items() if name != "spent"}
    return (folder / f"{rank}.json").read_bytes(), json.dumps(report)


@pytest.mark.parametrize("options", [{"budget": 0.4}, {"budget": "kl<0.01", "levels": 3, "method": "fisher"}], ids=str)
def test_any_number_of_processes_finds_the_same_bytes(options: dict[str, Any], tmp_path: Path) -> None:
    alone = calibrated(0, tmp_path, None, {**QUICK, **options})
    for count in (2, 3):
        assert several(calibrated, count, tmp_path, None, {**QUICK, **options}) == [alone] * count


def killed(rank: int, folder: Path) -> str:
    """The second process ends without a word at its twelfth measurement; what the first one says."""
    if rank == 1:
        divergence_meter.compare = ends_at(12, divergence_meter.compare)
    try:
        calibrated(rank, folder, folder / "kept" / "journal", {**QUICK, "budget": 0.4})
    except OpSkipError as error:
        return str(error)
    return "no error"


def test_any_number_of_processes_goes_on_after_a_killed_one(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    alone = calibrated(0, tmp_path, None, {**QUICK, "budget": 0.4})
    (said,) = several(killed, 2, tmp_path, dies=1)
    assert said.startswith("another process has ended or does not answer: ")
    measured = (tmp_path / "kept" / "journal.1").read_bytes()
    assert measured.count(b'"key"') >= 11
    for count in (1, 2, 3):
        kept = tmp_path / f"with {count}"
        shutil.copytree(tmp_path / "kept", kept)
        (kept / "journal.1").write_bytes(measured + b'{"key": "torn')
        assert several(calibrated, count, tmp_path, kept / "journal", {**QUICK, "budget": 0.4}) == [alone] * count


def failing(rank: int) -> str:
    """Before anything is shared: the sample of one process is none."""
    prompts = samples("llava", 3)
    if rank == 1:
        prompts[1] = {"input_ids": prompts[1]["input_ids"].float()}
    try:
        opskip.calibrate(FAMILIES["llava"].build(2), prompts, 0.2, **QUICK)
    except OpSkipError as error:
        return str(error)
    return "no error"


def test_what_one_process_refuses_is_raised_in_all() -> None:
    said = "samples[1]: input_ids: expected integers of shape (batch, sequence)"
    assert several(failing, 3, patience=60) == [f"process 1: {said}", said, f"process 1: {said}"]


def unlike(rank: int) -> str:
    prompts = samples("llava", 2 + rank)
    try:
        opskip.diagnose(FAMILIES["llava"].build(2), prompts, answer_tokens=1)
    except OpSkipError as error:
        return str(error)
    return "no error"


def test_processes_with_different_samples_are_told() -> None:
    first, second = several(unlike, 2)
    assert first == second
    assert first.startswith("data: process 0 has ")


def timed(rank: int) -> bytes:
    def table(*args: Any, **named: Any) -> dict[str, float]:
        assert rank == 0
        return {"full": 8.0, "attend": 4.0, "transform": 6.0, "silent": 2.0}

    latency.latency_table = table
    result = opskip.calibrate(FAMILIES["llava"].build(2), samples("llava", 3), "5ms", shares=(), **QUICK)
    return json.dumps(result.schedule.to_dict()).encode()


def test_the_first_process_times_the_decoder() -> None:
    first, second = several(timed, 2)
    assert first == second


def spread(rank: int, folder: Path) -> str:
    try:
        opskip.calibrate(split_model(folder), samples("llava", 2), 0.2, **QUICK)
    except OpSkipError as error:
        return str(error)
    return "no error"


def test_a_model_that_is_spread_over_the_processes(tmp_path: Path) -> None:
    """Its processes would wait for each other, with different prompts."""
    with_heads("llava").build(2).save_pretrained(tmp_path)
    for said in several(spread, 2, tmp_path):
        assert said.startswith("model: its weights are split among processes")
