"""What is compiled for the pretended card: whole small models in place, and a decoder as wide as a checkpoint's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

import opskip_compile as opskip
from benchmarks.cuda_code import card
from benchmarks.level_compile import four_levels
from benchmarks.row_counts import forward
from opskip_compile import _compat
from opskip_compile.attachment.forward import CompiledForward
from opskip_compile.models.tiny import FAMILIES
from opskip_compile.passes.row_counts import RowCounts
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.timing.decoders import DECODERS

RECORDED = "reduce-overhead"  # the mode
PADDED = 64  # what opskip_compile.compile takes in that mode
DTYPE = torch.bfloat16
BEFORE, VISUAL, TEXT = 16, 1024, 64
LAYERS = 4
WHOLE = "silent:1,3 attend:0 transform:2"
SHARES = "silent@keep=0.25:all"


@dataclass(frozen=True)
class Contender:
    """One thing to compile; ``run`` gets the mode of fake tensors and ends with `card.Stopped`."""

    model: str
    name: str
    run: Callable[[FakeTensorMode], None]


def contenders() -> Iterator[Contender]:
    """All of them."""
    schedules = {
        "dense": Schedule.of("none"),
        "whole operators": Schedule.of(WHOLE),
        "keep shares": Schedule.of(SHARES),
    }
    schedules["levels"] = four_levels(LAYERS)
    for family in ("qwen3_vl", "llava"):
        for name, schedule in schedules.items():
            for mode in (None, RECORDED):
                yield _in_place(family, name, schedule, mode)
    for name, schedule in schedules.items():
        for multiple, mode in ((0, None), (1, None), (0, RECORDED), (PADDED, RECORDED)):
            if not multiple or name in ("whole operators", "keep shares"):
                yield _decoder(name, schedule, multiple, mode)
    yield _decoder("levels", schedules["levels"], 0, None, batch=4)


def _in_place(family: str, name: str, schedule: Schedule, mode: str | None) -> Contender:
    """`opskip_compile.compile` of a small model: eager on the CPU up to the decoder, whose call is put on the card."""
    known = FAMILIES[family]

    def run(fake: FakeTensorMode) -> None:
        model, inputs = known.build(LAYERS, DTYPE), known.inputs()
        opskip.compile(model, schedule, mode=mode, options={"strict": True})
        inputs = {key: value.to(DTYPE) if value.is_floating_point() else value for key, value in inputs.items()}
        call = CompiledForward._call

        def there(self: Any, compiled: Any, mask: Any, rooms: Any, args: Any, named: Any) -> Any:
            card.put_on_card(self.part, fake)
            moved = tree_map(lambda value: card.on_card(value, fake), (mask, rooms, args, named))
            with fake:
                return call(self, compiled, *moved)

        with mock.patch.object(CompiledForward, "_call", there):
            model(**inputs)

    title = f"{known.title}, {LAYERS} small layers, compiled in place"
    return Contender(title, name + (", CUDA graphs" if mode else ""), run)


def _decoder(name: str, schedule: Schedule, multiple: int, mode: str | None, batch: int = 1) -> Contender:
    """``torch.compile`` of a decoder, with room for the rows that are kept or with sizes that the graph finds."""
    decoder = DECODERS["qwen3-vl-8b"].cut(LAYERS)

    def run(fake: FakeTensorMode) -> None:
        model = card.put_on_card(decoder.build("meta", DTYPE), fake)
        mask = torch.zeros(batch, VISUAL + TEXT, dtype=torch.bool)
        mask[:, BEFORE : BEFORE + VISUAL] = True
        hidden = torch.empty(batch, VISUAL + TEXT, decoder.geometry.hidden_size, dtype=DTYPE, device="meta")
        counts = RowCounts.of(schedule, multiple or 1)
        rooms: tuple[Tensor, ...] = counts.count(mask) if multiple else ()
        there = [card.on_card(each, fake) for each in (hidden, mask, *rooms)]
        for room in there[2:]:
            _compat.any_size(room, 0)
        options: Any = {"schedule": schedule, "strict": True, **({"mode": mode} if mode else {})}
        compiled = torch.compile(forward(model, counts.names), backend="opskip", options=options, dynamic=False)
        with fake:
            compiled(there[0], there[1], tuple(there[2:]))

    how = "" if name == "dense" else ", counted" if multiple else ", found by the graph"
    title = f"{name}{how}" + (", CUDA graphs" if mode else "") + (f", batch {batch}" if batch > 1 else "")
    return Contender(f"{decoder.title}, {LAYERS} layers", title, run)


def make(contender: Contender) -> card.Made:
    """Compile it for the card; what it raises is what Inductor or Triton raised."""
    made = card.Made()
    torch.compiler.reset()
    stopping = mock.patch.object(_compat, "inductor", card.lowering(_compat.inductor))
    with card.pretended(made) as fake, torch.no_grad(), stopping, suppress(card.Stopped):
        contender.run(fake)
    return made
