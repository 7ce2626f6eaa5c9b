"""Decoders of real sizes: built with the sizes that are counted, and schedules thinned to their depth."""

from __future__ import annotations

from dataclasses import replace

import pytest

import opskip_compile as opskip
from opskip_compile.schedule.presets import presets
from opskip_compile.timing.decoders import DECODERS, thinned

pytestmark = pytest.mark.usefixtures("fresh")


def test_sizes_are_those_of_the_presets() -> None:
    for preset in presets():
        for name in ("qwen3-vl-8b", "qwen2.5-vl-7b", "llava-1.5-7b"):
            if preset.name.startswith(name):
                assert DECODERS[name].geometry == preset.geometry


@pytest.mark.parametrize("name", DECODERS)
def test_built_decoders_have_the_sizes_that_are_counted(name: str) -> None:
    cut = DECODERS[name].cut(2)
    assert opskip.Geometry.from_config(cut.build("meta")) == replace(DECODERS[name].geometry, num_layers=2)


def test_presets_are_thinned_over_the_depth() -> None:
    made = opskip.Schedule.from_spec("silent:6-7 attend@through_visual:2 transform:4-5 attend@through_visual:4")
    states = [(s.attention, s.ffn) for s in made.resolve(8)]
    full = replace(made, model={"num_layers": 8})
    assert [(s.attention, s.ffn) for s in thinned(full, 4).resolve(4)] == [states[i] for i in (1, 3, 5, 7)]
    assert [(s.attention, s.ffn) for s in thinned(full, 8).resolve(8)] == states
    assert thinned(replace(full, rules=()), 4).is_empty
    late = opskip.Schedule.from_spec("late:0.5")
    assert thinned(late, 4) is late
