"""Published schedules: transcribed without a slip, named, and matched to the right model only."""

from __future__ import annotations

from collections import Counter

import pytest

from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.presets import Preset, match_preset, presets
from opskip_compile.schedule.published import OP_SKIP, SHORTV
from opskip_compile.schedule.schedule import Schedule

BY_NAME = {preset.name: preset for preset in presets()}
OP_SKIP_NAMES = [name for name in BY_NAME if "/" in name]


def test_names_are_these() -> None:
    labels = {
        "qwen3-vl-8b": (12, 16, 20, 24, 28, 32, 36),
        "qwen2.5-vl-7b": (8, 12, 16, 20, 24, 28),
        "llava-1.5-7b": (8, 12, 16, 20, 24, 32),
        "llava-next-7b": (16, 20, 24),
    }
    shortv = ["llava-1.5-7b", "llava-1.5-13b", "llava-next-7b", "llava-next-13b"]
    expected = [f"{key}/{label}" for key, found in labels.items() for label in found]
    expected += [f"shortv-{key}" for key in shortv]
    assert [preset.name for preset in presets()] == expected


@pytest.mark.parametrize("name", OP_SKIP_NAMES)
def test_op_skip_label_is_the_number_of_layers_that_are_not_full(name: str) -> None:
    preset = BY_NAME[name]
    layers = preset.schedule.resolve(preset.geometry.num_layers)
    assert sum(layer.state != "full" for layer in layers) == int(name.split("/")[1])
    for layer in layers:
        silent = layer.state == "silent"
        assert {layer.attention, layer.ffn} - {None} <= {LeftOut("through_visual" if silent else "visual")}
    assert preset.source == OP_SKIP


@pytest.mark.parametrize("model", ["qwen3-vl-8b", "qwen2.5-vl-7b", "llava-1.5-7b", "llava-next-7b"])
def test_op_skip_silent_layers_are_the_same_at_every_label(model: str) -> None:
    found = [BY_NAME[name].schedule for name in OP_SKIP_NAMES if name.startswith(model)]
    assert len({schedule.rules[0] for schedule in found}) == 1


@pytest.mark.parametrize(
    ("name", "count"),
    [("llava-1.5-7b", 19), ("llava-1.5-13b", 24), ("llava-next-7b", 19), ("llava-next-13b", 24)],
)
def test_shortv_layers_are_silent_for_visual_rows(name: str, count: int) -> None:
    preset = BY_NAME[f"shortv-{name}"]
    states = Counter(preset.schedule.resolve(preset.geometry.num_layers))
    silent = {state: n for state, n in states.items() if state.state != "full"}
    assert [(s.attention, s.ffn, n) for s, n in silent.items()] == [(LeftOut(), LeftOut(), count)]
    assert preset.source == SHORTV


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("qwen3-vl-8b/12", "." * 24 + "s" * 12),
        ("qwen3-vl-8b/20", "..t.t............tt.tttt" + "s" * 12),
        ("qwen2.5-vl-7b/16", "...tt......a...aattt" + "sssssst" + "s"),
        ("llava-1.5-7b/12", "t.a..................t.t" + "s" * 8),
        ("llava-1.5-7b/32", "ttatttttttattttttttttttt" + "s" * 8),
        ("llava-next-7b/20", "..a.........t.tttttttttt" + "s" * 8),
        ("shortv-llava-next-7b", "s.s.........s..s." + "s" * 15),
    ],
)
def test_layer_states(name: str, states: str) -> None:
    layers = Schedule.preset(name).resolve(len(states))
    letters = {"full": ".", "attend": "a", "transform": "t", "silent": "s"}
    assert "".join(letters[layer.state] for layer in layers) == states


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_a_preset_is_a_schedule_by_name(preset: Preset) -> None:
    schedule = Schedule.from_spec(preset.name)
    assert schedule == Schedule.preset(preset.name) == Schedule.from_dict(preset.schedule.to_dict())
    assert schedule.name == preset.name
    assert schedule.num_layers == preset.geometry.num_layers
    assert schedule.model["architecture"] == preset.model_type
    assert schedule.provenance["source"] == preset.source
    assert schedule.rules == Schedule.from_spec(preset.spec).rules
    assert 0.18 < preset.cut() < 0.51
    assert preset.cut(0, 64) == 0


def test_one_default_per_model_nearest_to_the_published_cut() -> None:
    for model in {preset.model for preset in presets()}:
        mine = [preset for preset in presets() if preset.model == model]
        op_skip = [preset for preset in mine if preset.source == OP_SKIP]
        best = min(op_skip or mine, key=lambda preset: abs(preset.cut(1024, 64) - 0.337))
        assert [preset.name for preset in mine if preset.default] == [best.name]


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (("qwen3_vl", 36, 4096), "qwen3-vl-8b/20"),
        (("qwen3_vl_text", 36, 4096), "qwen3-vl-8b/20"),
        (("qwen3_vl", 36, 4096, 12288), "qwen3-vl-8b/20"),
        (("qwen2_5_vl", 28, 3584), "qwen2.5-vl-7b/16"),
        (("llava", 32, 4096), "llava-1.5-7b/32"),
        (("llava", 40, 5120, 13824), "shortv-llava-1.5-13b"),
        (("llava_next", 32, 4096, 11008), "llava-next-7b/24"),
        (("llava_next", 40, 5120), "shortv-llava-next-13b"),
        (("llava_next", 32, 4096, 14336), None),  # LLaVA-NeXT on Mistral-7B or Llama-3-8B
        (("qwen3_vl", 36, 2560), None),  # Qwen3-VL-4B
        (("qwen3_vl", 35, 4096), None),
        (("llama", 32, 4096), None),
        (("", 32, 4096), None),
    ],
)
def test_match_preset(facts: tuple[str, int, int], name: str | None) -> None:
    found = match_preset(*facts)
    assert (found.name if found else None) == name
