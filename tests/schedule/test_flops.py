"""FLOPs: the formula by hand, the published points, and geometries read from real configs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from opskip_compile.errors import OpSkipError, OptionError, ScheduleError
from opskip_compile.schedule.flops import FlopsReport, OperatorFlops, count_flops
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.presets import presets
from opskip_compile.schedule.schedule import Schedule

TINY = Geometry(2, hidden_size=6, intermediate_size=10, num_heads=4, num_kv_heads=2, head_dim=3)
BY_NAME = {preset.name: preset for preset in presets()}


def test_one_layer_by_hand() -> None:
    report = count_flops(TINY, visual_tokens=5, text_tokens=2, schedule="silent:1")
    # 7 rows, 2 kept: Q and output 2 * 2*r*6*12, K and V 2 * 2*7*6*6, scores and product 2 * 2*r*7*12
    full_attention = 2 * (2 * 7 * 6 * 12) + 2 * (2 * 7 * 6 * 6) + 2 * (2 * 7 * 7 * 12)
    less_attention = 2 * (2 * 2 * 6 * 12) + 2 * (2 * 7 * 6 * 6) + 2 * (2 * 2 * 7 * 12)
    full_ffn, less_ffn = 3 * (2 * 7 * 6 * 10), 3 * (2 * 2 * 6 * 10)
    assert report.operators == (
        OperatorFlops(0, "attention", full_attention, full_attention),
        OperatorFlops(0, "ffn", full_ffn, full_ffn),
        OperatorFlops(1, "attention", full_attention, less_attention),
        OperatorFlops(1, "ffn", full_ffn, less_ffn),
    )
    assert report.dense == 2 * (full_attention + full_ffn)
    assert report.skipped == full_attention + full_ffn + less_attention + less_ffn
    assert report.cut == pytest.approx((report.dense - report.skipped) / report.dense)
    assert report.ideal_speedup == report.dense / report.skipped
    assert TINY.ffn(7) == full_ffn
    assert Geometry(2, 6, 10, 4, 2, 3, gated=False).ffn(7) == 2 * (2 * 7 * 6 * 10)


@pytest.mark.parametrize(
    ("name", "visual", "dense", "skipped"),
    [
        ("shortv-llava-1.5-7b", 576, "8.5", "4.7"),
        ("shortv-llava-1.5-13b", 576, "16.6", "9.1"),
        ("shortv-llava-next-7b", 2880, "42.7", "21.6"),
    ],
)
def test_published_teraflops(name: str, visual: int, dense: str, skipped: str) -> None:
    report = count_flops(BY_NAME[name].geometry, visual_tokens=visual, text_tokens=64, schedule=name)
    assert (f"{report.dense / 1e12:.1f}", f"{report.skipped / 1e12:.1f}") == (dense, skipped)


@pytest.mark.parametrize(("state", "share"), [("transform", "19.9"), ("attend", "71.0"), ("silent", "91.0")])
def test_published_share_of_one_layer(state: str, share: str) -> None:
    geometry = BY_NAME["qwen3-vl-8b/20"].geometry
    report = count_flops(geometry, visual_tokens=1024, text_tokens=55, schedule=f"{state}:7")
    layer = [item for item in report.operators if item.layer == 7]
    saved = sum(item.dense - item.skipped for item in layer) / sum(item.dense for item in layer)
    assert f"{saved:.1%}" == share + "%"
    assert report.cut == pytest.approx(saved / 36)


@pytest.mark.parametrize("schedule", [None, "none", Schedule(), "late:0"])
def test_nothing_skipped(schedule: Any) -> None:
    report = count_flops(TINY, visual_tokens=5, text_tokens=2, schedule=schedule)
    assert (report.cut, report.ideal_speedup) == (0, 1)


@pytest.mark.parametrize("schedule", ["silent:0-1", "silent@through_visual:0-1"])
def test_no_visual_rows_means_dense(schedule: str) -> None:
    assert count_flops(TINY, visual_tokens=0, text_tokens=7, schedule=schedule).cut == 0


def test_row_scopes_differ_by_the_text_before_the_last_visual_row() -> None:
    def skipped(schedule: str, text: int = 4, **more: int) -> int:
        return count_flops(TINY, visual_tokens=5, text_tokens=text, schedule=schedule, **more).skipped

    visual, through = "silent:0-1", "silent@through_visual:0-1"
    assert skipped(visual) == skipped(through) == skipped(visual, text_before=3)
    per_row = 2 * (4 * 6 * 12 + 4 * 9 * 12 + 6 * 6 * 10)  # Q, output, scores, product and FFN of one row
    assert skipped(visual) - skipped(through, text_before=3) == 3 * per_row


def test_all_rows_visual_still_project_keys_and_values() -> None:
    report = count_flops(TINY, visual_tokens=5, text_tokens=0, schedule="silent:0-1")
    assert [item.skipped for item in report.operators] == [4 * 5 * 6 * 6, 0] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"visual_tokens": -1}, "visual_tokens: expected an integer of at least 0, got -1"),
        ({"visual_tokens": True}, "visual_tokens: "),
        ({"visual_tokens": 5.0}, "visual_tokens: "),
        ({"text_tokens": "2"}, "text_tokens: "),
        ({"visual_tokens": 0, "text_tokens": 0}, "text_tokens: expected an integer of at least 1"),
        ({"text_before": -1}, "text_before: "),
        ({"text_before": 3}, "text_before: at most"),
        ({"visual_tokens": 0, "text_before": 1}, "text_before: at most"),
    ],
)
def test_bad_counts_name_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        count_flops(TINY, **{"visual_tokens": 5, "text_tokens": 2, **arguments})


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("silent:2", "layer 2 is not in a model of 2 layers"),
        ("qwen3-vl-8b/20", "made for 36 layers, the model has 2"),
        (3, "schedule: "),
    ],
)
def test_bad_schedules_are_refused(schedule: Any, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        count_flops(TINY, visual_tokens=5, text_tokens=2, schedule=schedule)


def config(**changes: Any) -> SimpleNamespace:
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 20, "num_attention_heads": 4}
    return SimpleNamespace(**{**sizes, **changes})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TINY, TINY),
        (config(), Geometry(2, 8, 20, 4, 4, 2)),
        (config(num_key_value_heads=1, head_dim=16), Geometry(2, 8, 20, 4, 1, 16)),
        (config(head_dim=None, num_key_value_heads=None), Geometry(2, 8, 20, 4, 4, 2)),
        (SimpleNamespace(config=config()), Geometry(2, 8, 20, 4, 4, 2)),
        (config(num_experts=None, num_local_experts=0), Geometry(2, 8, 20, 4, 4, 2)),
        (config(model_type="opt", intermediate_size=None, ffn_dim=9), Geometry(2, 8, 9, 4, 4, 2, False)),
        (config(model_type="gpt2", intermediate_size=None, n_inner=None), Geometry(2, 8, 32, 4, 4, 2, False)),
    ],
)
def test_geometry_from_config(source: Any, expected: Geometry) -> None:
    assert Geometry.from_config(source) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (object(), "config: object does not give num_layers, hidden_size, intermediate_size, num_heads"),
        (config(intermediate_size=None), "does not give intermediate_size"),
        (config(num_attention_heads=None), "does not give num_heads, num_kv_heads, head_dim"),
        (config(num_experts=8), "mixture of experts"),
        (config(num_hidden_layers=-1), "config.num_hidden_layers: expected an integer of at least 1, got -1"),
        (config(hidden_size="8"), "config.hidden_size: expected an integer of at least 1, got '8'"),
        (config(intermediate_size=[20, 20]), "config.intermediate_size: expected an integer"),
        (config(hidden_size=3), "geometry.head_dim: expected an integer of at least 1, got 0"),
    ],
)
def test_unreadable_config_says_what_is_missing(source: Any, message: str) -> None:
    with pytest.raises(OpSkipError, match=message):
        Geometry.from_config(source)


def test_geometry_of_transformers_configs() -> None:
    transformers = pytest.importorskip("transformers")
    text = {
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    qwen3 = transformers.Qwen3VLConfig(text_config={**text, "head_dim": 32})
    assert Geometry.from_config(qwen3) == Geometry(3, 64, 160, 4, 2, 32)
    qwen25 = transformers.Qwen2_5_VLConfig(text_config=text)
    assert Geometry.from_config(qwen25) == Geometry(3, 64, 160, 4, 2, 16)
    llava = transformers.LlavaConfig(text_config=transformers.LlamaConfig(**text))
    assert Geometry.from_config(llava) == Geometry(3, 64, 160, 4, 2, 16)
    opt = transformers.OPTConfig(num_hidden_layers=3, hidden_size=64, ffn_dim=100, num_attention_heads=4)
    blip2 = transformers.Blip2Config(text_config=opt.to_dict())
    assert Geometry.from_config(blip2) == Geometry(3, 64, 100, 4, 4, 16, gated=False)
    with pytest.raises(OpSkipError, match="mixture of experts"):
        Geometry.from_config(transformers.Qwen3VLMoeConfig())


def test_report_as_table_and_as_json() -> None:
    report: FlopsReport = count_flops(
        BY_NAME["qwen3-vl-8b/20"].geometry, visual_tokens=1024, text_tokens=64, schedule="qwen3-vl-8b/20"
    )
    lines = str(report).splitlines()
    assert "36 layers, 1024 visual + 64 text rows" in lines[0]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert [row[:2] for row in cells] == [["attention", "20 layers"], ["ffn", "12 layers"], ["total", ""]]
    assert cells[2][2:] == [f"{report.dense / 1e12:.3f}", f"{report.skipped / 1e12:.3f}", f"{report.cut:.1%}"]
    assert lines[-1].strip() == f"ideal speed-up {report.ideal_speedup:.2f}x"
    data = json.loads(json.dumps(report.to_dict()))
    assert (data["dense"], data["cut"], len(data["operators"])) == (report.dense, report.cut, 72)
