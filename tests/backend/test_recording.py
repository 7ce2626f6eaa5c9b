"""CUDA graphs: only of graphs in which nothing waits for the device, whoever asks for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from torch import fx

import opskip_compile as opskip
from opskip_compile import _compat
from opskip_compile.backend import entry, lowering
from opskip_compile.models.tiny import FAMILIES
from opskip_compile.passes import levels, runtime, scores
from opskip_compile.passes.tune import causal_attention
from opskip_compile.schedule.chooser import BUCKETS, Chooser, deepest
from opskip_compile.schedule.schedule import Schedule

SWITCH = "triton.cudagraphs"
LEVELS = Schedule(
    levels=(Schedule(), Schedule.of("attend:all")),
    chooser=Chooser(((0.0,) * 2 * BUCKETS,) * 2, (0.0,) * 2, deepest(2, 0.0), 0.0),
)


def _cases() -> dict[str, tuple[Any, tuple[Any, ...], tuple[Any, ...] | None]]:
    """Operator -> its definition, arguments on a device, and the room that it may be given, too.

    The device is ``meta``: any torch has it, and it gives as little away to the host as a GPU that nobody waits for. So
    are numbers that the host has in fact: code that reads them can't be recorded either.
    """
    on: Any = {"device": "meta"}
    visual, mask = torch.empty(2, 24, dtype=torch.bool, **on), torch.empty(2, 1, 24, 24, dtype=torch.bool, **on)
    hidden, score = torch.empty(2, 24, 32, **on), torch.empty(2, 24, **on)
    query, probes = torch.empty(2, 4, 8, 8, **on), torch.empty(2, 8, dtype=torch.int64, **on)
    live, level = torch.empty(2, 8, dtype=torch.bool, **on), torch.empty(2, 24, dtype=torch.int64, **on)
    most, room = torch.empty(2, dtype=torch.int64, **on), torch.empty(8, **on)
    everywhere, causal = torch.empty(2, 4, 24, 8, **on), torch.empty((), dtype=torch.bool, **on)
    numbers = ([0.0] * 4 * BUCKETS, [0.0, 0.0], [0.0, 0.0], 0.0, "digest")
    ask = (query, everywhere, mask[:, :, :8], probes, live[..., None], score, None, None, False)
    attention = (everywhere, everywhere, everywhere, mask, causal, None, False)
    return {
        "kept_rows": (runtime.kept_rows, (visual, False), (room,)),
        "shared": (runtime.shared, (hidden,), None),
        "visual_rows": (runtime.visual_rows, (hidden, visual), None),
        "packed_rows": (runtime.packed_rows, (probes, live, most), None),
        "probe_rows": (scores.probe_rows, (visual, mask, None), None),
        "spread_scores": (scores.spread_scores, (visual,), None),
        "row_scores": (scores.row_scores, ask, None),
        "kept_count": (scores.kept_count, (visual, False, 0.25), None),
        "on_host": (scores.on_host, ([most, most],), None),
        "kept_share": (scores.kept_share, (visual, False, 0.25), None),
        "critical_rows": (scores.critical_rows, (visual, False, score, level, most), (room,)),
        "choose_level": (levels.choose_level, (hidden, visual, mask, None, *numbers), None),
        "kept_by_level": (levels.kept_by_level, (visual, False, [1.0, 0.5], level), None),
        "attend": (causal_attention.attend, attention, None),
    }


NAMES = tuple(
    "kept_rows shared visual_rows packed_rows probe_rows spread_scores row_scores kept_count on_host kept_share "
    "critical_rows choose_level kept_by_level attend".split()
)


@pytest.mark.parametrize("name", NAMES)
def test_which_operators_wait(name: str) -> None:
    """What is stated of each operator is what its own code does on a device."""
    with mock.patch.dict(levels._TAKEN):
        definition, args, room = _cases()[name]
        for given in (args,) if room is None else (args, (*args, *room)):
            node = fx.Graph().call_function(getattr(torch.ops.opskip, name).default, given)  # as passes write it
            assert lowering._waits(node) is _waits(definition._init_fn, given), given


def test_all_operators_are_cases() -> None:
    modules = (runtime, scores, levels, causal_attention)
    values = [value for module in modules for value in vars(module).values()]
    assert sorted(NAMES) == sorted(each._name for each in values if isinstance(each, torch.library.CustomOpDef))


def _waits(function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    def copy_from_host(*args: Any, **named: Any) -> Any:
        raise RuntimeError("numbers of the host for a meta tensor")

    with mock.patch.multiple(torch, tensor=copy_from_host, autocast=lambda *args, **named: nullcontext()):
        try:
            function(*args)
        except (RuntimeError, NotImplementedError) as error:  # the device gives nothing away
            assert "meta tensor" in str(error)
            return True
    return False


@pytest.mark.parametrize(
    "spec, counted, recorded",
    [
        ("silent:all", True, True),
        ("silent:all", False, False),
        ("silent@keep=0.25:all", True, True),
        ("silent@keep=0.25:all", False, False),
        (LEVELS, True, False),
        (LEVELS, False, False),
    ],
)
def test_which_graphs_are_recorded(
    spec: str | Schedule,
    counted: bool,
    recorded: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`opskip_compile.compile` counts rows, ``model.compile`` does not; regions hide nothing."""
    configs: list[Mapping[str, Any]] = []

    def lower(gm: fx.GraphModule, inputs: Sequence[Any], config: Mapping[str, Any]) -> Any:
        if any(str(node.target).startswith("opskip.") for node in gm.graph.nodes):
            configs.append(config)
        return gm.forward

    monkeypatch.setattr(_compat, "inductor", lower)
    # On a CPU no layer asks for the causal mask where a GPU would not.
    monkeypatch.setattr(entry, "_is_recorded", lambda settings, inputs: settings.records_cuda_graphs)
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    if counted:
        opskip.compile(model, spec, mode="reduce-overhead")
    else:
        model.compile(backend="opskip", options={"schedule": spec, "mode": "reduce-overhead"})
    with torch.no_grad(), caplog.at_level(logging.WARNING, "opskip_compile"):
        model(**inputs)
    assert [config[SWITCH] for config in configs] == [recorded]
    assert ("no CUDA graph is recorded" in caplog.text) is not recorded
