"""Checks in several processes that exchange values by gloo, and the tiny models that they split among them.

The processes are copies of this one, so that nothing has to be imported again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from math import prod
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import distributed, nn
from torch.profiler import ProfilerActivity, profile, record_function

import opskip_compile as opskip
from opskip_compile.models.tiny import FAMILIES, Family

Result = TypeVar("Result")
PATIENCE = 120  # seconds
_SIZES = {"float": 4, "double": 8, "long int": 8, "int": 4, "c10::BFloat16": 2, "c10::Half": 2, "unsigned char": 1}
_DECODER = "opskip: the decoder"


def several(
    check: Callable[..., Result], count: int, *args: Any, patience: int = PATIENCE, dies: int | None = None
) -> list[Result]:
    """``check(rank, *args)`` in ``count`` processes of one group; the results in the order of their ranks.

    No result for ``patience`` seconds, and they are taken to wait for each other. Of the process ``dies``, which ends
    without a word, there is no result.

    Raises:
        AssertionError: one of them failed, or they wait.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe(duplex=False) for _ in range(count)]
        processes = [
            context.Process(target=_run, args=(there, folder, rank, count, patience, check, args), daemon=True)
            for rank, (_, there) in enumerate(ends)
        ]
        for process, (_, there) in zip(processes, ends, strict=True):
            process.start()
            there.close()
        try:
            return _collect([here for rank, (here, _) in enumerate(ends) if rank != dies], patience)
        finally:
            for process in processes:
                process.kill()
                process.join()


def ends_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, but this process ends without a word as it calls it for so many times."""
    done = 0

    def counted(*args: Any) -> Any:
        nonlocal done
        done += 1
        if done == call:
            os._exit(9)
        return function(*args)

    return counted


def _collect(ends: list[Connection], patience: int) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        ready = wait([end for rank, end in enumerate(ends) if rank not in results], patience)
        assert ready, f"processes {[rank for rank in range(len(ends)) if rank not in results]} are still waiting"
        for end in ready:
            result, error = pickle.loads(end.recv_bytes())  # type: ignore[union-attr]
            assert not error, error
            results[ends.index(end)] = result  # type: ignore[arg-type]
    return [results[rank] for rank in range(len(ends))]


def _run(
    there: Connection,
    folder: str,
    rank: int,
    count: int,
    patience: int,
    check: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    try:
        where = f"file://{folder}/meet"
        distributed.init_process_group(
            "gloo", init_method=where, rank=rank, world_size=count, timeout=timedelta(seconds=patience)
        )
        with torch.no_grad():
            there.send_bytes(pickle.dumps((check(rank, *args), "")))  # whole tensors, no shared memory
        distributed.barrier()  # nobody leaves while another one still waits for it
    except BaseException:
        there.send_bytes(pickle.dumps((None, traceback.format_exc())))


def with_heads(name: str, **fields: int) -> Family:
    """A tiny family with four heads of keys, which four processes can share, and other fields of its decoder."""
    family = FAMILIES[name]

    def config(layers: int) -> Any:
        made = family.config(layers)
        for field, value in {"num_key_value_heads": 4, **fields}.items():
            setattr(made.text_config, field, value)
        if family.grid:
            made.vision_config.out_hidden_size = made.text_config.hidden_size
        return made

    return replace(family, config=config)


def split_model(folder: Path, plan: dict[str, str] | None = None) -> Any:
    """The model that was saved in ``folder``, its decoder split among the processes by its plan, or this one."""
    about = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, about.architectures[0])
    config = transformers.distributed.DistributedConfig(tp_plan=plan or opskip.tensor_parallel_plan(about))
    return kind.from_pretrained(folder, distributed_config=config).eval()


def bytes_in_decoder(model: nn.Module, inputs: dict[str, Any]) -> dict[str, int]:
    """What this process hands to collectives while the decoder of ``model`` runs: name -> bytes.

    Counted by PyTorch's profiler from the calls of gloo that really run.
    """
    decoder, ranges = model.get_decoder(), []  # type: ignore[operator]

    def begin(*_: Any) -> None:
        ranges.append(record_function(_DECODER))
        ranges[-1].__enter__()

    def end(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    handles = [decoder.register_forward_pre_hook(begin), decoder.register_forward_hook(end)]
    try:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    with tempfile.TemporaryDirectory() as folder:
        profiled.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text(encoding="utf-8"))["traceEvents"]
    (whole,) = [event for event in events if event.get("name") == _DECODER and event.get("ph") == "X"]
    found: dict[str, int] = {}
    for event in events:
        name = str(event.get("name"))
        if name.startswith("gloo:") and whole["ts"] <= event["ts"] <= whole["ts"] + whole["dur"]:
            given = zip(event["args"]["Input Dims"], event["args"]["Input type"], strict=True)
            size = sum(prod(dims) * _SIZES[kind] for dims, kind in given if kind)
            found[name.removeprefix("gloo:")] = found.get(name.removeprefix("gloo:"), 0) + size
    return found
