"""`opskip bench prefill`: contenders compute what they say, figures follow from the rounds, bad input is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import opskip_compile as opskip
from opskip_compile import _compat
from opskip_compile.bench.show_prefill import Case, figure, table
from opskip_compile.cli.main import app
from opskip_compile.passes.tune import onednn
from opskip_compile.schedule.presets import presets
from opskip_compile.timing import decoders, prefill
from opskip_compile.timing.decoders import DECODERS, Decoder, thinned
from opskip_compile.timing.dropping import Dropping
from opskip_compile.timing.prefill import EAGER, INDUCTOR, ONEDNN, PrefillTimes, run_prefill
from opskip_compile.timing.time_by_kind import kind_of

pytestmark = pytest.mark.usefixtures("fresh", "plain_blas")
KINDS = sorted({decoder.kind for decoder in DECODERS.values()})
SMALL = opskip.Geometry(4, 64, 96, 4, 2, 16)
VISUAL, TEXT = 24, 20


@pytest.fixture
def plain_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor is: no contender in oneDNN."""
    monkeypatch.setattr(_compat, "blas_is_slow", lambda: False)


def prompt() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.zeros(VISUAL + TEXT, dtype=torch.bool)
    mask[7 : 7 + VISUAL] = True
    return torch.randn(1, VISUAL + TEXT, 64), mask.nonzero().flatten(), (~mask).nonzero().flatten()


@pytest.mark.parametrize("kind", KINDS)
def test_token_dropping_is_the_decoder_on_fewer_rows(kind: str) -> None:
    model: Any = Decoder("", kind, SMALL).build()
    hidden, visual, text = prompt()
    with torch.no_grad():
        dense = model(inputs_embeds=hidden, use_cache=True)
        nothing, cache = Dropping(2, 0.0).forward(model, hidden, visual, text)
        torch.testing.assert_close(nothing, dense.last_hidden_state, atol=1e-5, rtol=1e-5)
        for got, want in zip(cache.layers, dense.past_key_values.layers, strict=True):
            torch.testing.assert_close(got.keys, want.keys, atol=1e-5, rtol=1e-5)
        alone = model(inputs_embeds=hidden[:, text], position_ids=text[None]).last_hidden_state
        everything, _ = Dropping(0, 1.0).forward(model, hidden, visual, text)
        torch.testing.assert_close(everything, alone, atol=1e-5, rtol=1e-5)
        half, cache = Dropping(1, 0.5).forward(model, hidden, visual, text)
    assert half.shape == (1, TEXT + VISUAL // 2, 64)
    assert [layer.keys.shape[2] for layer in cache.layers] == [VISUAL + TEXT] + [TEXT + VISUAL // 2] * 3


def test_flops_of_token_dropping_are_those_that_run() -> None:
    model: Any = Decoder("", "Llama", SMALL).build()
    hidden, visual, text = prompt()
    for dropping in (Dropping(1, 0.5), Dropping(2, 1.0), Dropping(3, 0.25)):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            dropping.forward(model, hidden, visual, text)
        assert counter.get_total_flops() == dropping.flops(SMALL, VISUAL, TEXT)


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


def measured(**more: Any) -> list[PrefillTimes]:
    schedules = {"none": opskip.Schedule.of("none"), "some": opskip.Schedule.of("silent:1 attend:3")}
    sizes = {"visual": VISUAL, "text": TEXT, "rounds": 2, "lower": "eager", **more}
    return run_prefill(Decoder("small", "Qwen3VLText", SMALL), schedules, {"drop": Dropping(2, 1.0)}, **sizes)


def test_rows() -> None:
    steps: list[tuple[str, int, int]] = []
    rows = measured(without=("causal",), step=lambda *step: steps.append(step))
    by_name = {row.name: row for row in rows}
    assert list(by_name) == [EAGER, INDUCTOR, "none", "none, causal off", "some", "some, causal off", "drop"]
    assert [done for _, done, _ in steps] == list(range(steps[-1][2]))
    some = by_name["some"]
    counted = opskip.count_flops(SMALL, visual_tokens=VISUAL, text_tokens=TEXT, schedule="silent:1 attend:3")
    assert (some.flops, some.dense_flops, some.ideal) == (counted.skipped, counted.dense, counted.ideal_speedup)
    assert all(row.dense_seconds == by_name[INDUCTOR].seconds and len(row.seconds) == 2 for row in rows)
    assert all(row.peak > 4 * 2 * SMALL.num_kv_heads * SMALL.head_dim * TEXT for row in rows)
    assert by_name["drop"].peak < by_name[INDUCTOR].peak
    skipped = [report for report in opskip.reports() if report.rewritten]
    assert {r.layer_states() for r in skipped} == {("full", "silent", "full", "attend")}


def test_dense_with_the_same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "blas_is_slow", lambda: True)
    monkeypatch.setattr(onednn, "SMALLEST", 1)
    made, replaced = prefill.use_onednn, list[int]()

    def recorded(*graphs: Any) -> int:
        replaced.append(made(*graphs))
        return replaced[-1]

    monkeypatch.setattr(prefill, "use_onednn", recorded)
    rows = {row.name: row for row in measured(without=("onednn", "causal"))}
    off = ["none, onednn off", "none, causal off", "some", "some, onednn off", "some, causal off"]
    assert list(rows) == [EAGER, INDUCTOR, ONEDNN, "none", *off, "drop"]
    assert len(replaced) >= 2 and {*replaced} == {28}  # seven of each layer: the dense decoder, and the one that drops
    # The others run in BLAS, also the graph that skips nothing.
    assert {name for name, row in rows.items() if row.alike_seconds} == {ONEDNN, "some", "some, causal off", "drop"}
    assert rows["some"].alike_seconds == rows[ONEDNN].seconds
    assert rows[ONEDNN].to_dict()["realised_alike"] == 1
    assert table(Case("M", 4, 4, VISUAL, TEXT, tuple(rows.values()))).columns[7].header == "alike"
    assert "realised_alike" not in measured(dtype=torch.bfloat16)[0].to_dict()


def test_profile() -> None:
    assert not measured(rounds=1)[0].by_kind
    steps: list[tuple[str, int, int]] = []
    rows = measured(rounds=1, profile=True, step=lambda *step: steps.append(step))
    assert [done for _, done, _ in steps] == list(range(steps[-1][2]))
    for row in rows:
        assert [*row.by_kind] == ["products", "attention", "other"]
        assert min(row.by_kind.values()) > 0
        assert row.to_dict()["seconds_by_kind"].keys() == row.by_kind.keys()
    with pytest.raises(opskip.OptionError, match="profile: for a CPU only, not meta"):
        measured(profile=True, device="meta")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "products"),
        ("aten::bmm", "products"),
        ("mkldnn::_linear_pointwise", "products"),
        ("opskip::linear", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("opskip::attend", "attention"),
        ("aten::layer_norm", "other"),
        ("aten::copy_", "other"),
        ("Torch-Compiled Region: 0/0", "other"),
    ],
)
def test_kinds_of_operations(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize("attention_mask", [True, False])
def test_prompts_come_with_an_attention_mask(attention_mask: bool) -> None:
    measured(rounds=1, attention_mask=attention_mask)
    (report,) = (report for report in opskip.reports() if report.rewritten)
    replaced = {done.name: done.changed for done in report.passes}["causal"]
    assert replaced == (3 if attention_mask else 0)  # the three full attentions, which see a dense mask


def test_figures_of_a_row() -> None:
    row = PrefillTimes("x", "schedule", "silent:0", 50, 100, (0.5, 0.25, 1.0), (1.0, 1.0, 1.0), 3 << 20, 4 << 20)
    found = row.to_dict()
    assert (row.cut, row.ideal, row.measured) == (0.5, 2.0, 2.0)
    assert (found["spread"], found["realised"], found["milliseconds"]) == ([1.0, 4.0], 1.0, 500.0)
    assert (found["peak_mib"], found["peak_to_inductor"]) == (3.0, 0.75)
    assert "realised_alike" not in found
    assert replace(row, alike_seconds=(0.5, 0.5, 0.5)).to_dict()["realised_alike"] == 0.5
    slow = replace(row, name="slow", seconds=(2.0, 2.0, 2.0))
    assert prefill.never_slower([row, slow, replace(slow, flops=100), replace(slow, kind="dense")]) == ["slow"]


def test_a_schedule_that_stays_full_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    given, compiled = list[dict[str, Any]](), torch.compile

    def recorded(*args: Any, **kwargs: Any) -> Any:
        given.append(kwargs)
        return compiled(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", recorded)
    measured(rounds=1)
    ours = [kwargs["options"] for kwargs in given if kwargs["backend"] == "opskip"]
    assert [options["strict"] for options in ours] == [True, True]
    assert all(kwargs["dynamic"] is False for kwargs in given)


def test_plot_and_table() -> None:
    row = PrefillTimes("x", "schedule", "silent:0", 50, 100, (0.5, 0.25), (1.0, 1.0), 3, 4)
    dense = replace(row, name=INDUCTOR, kind="dense", flops=100, seconds=(1.0, 1.0))
    case = Case("M", 4, 36, 1024, 64, (dense, row, replace(row, name="d", kind="dropping")))
    made = figure([case, case], "CPU")
    assert len(made.axes) == 2
    in_onednn = replace(dense, name=ONEDNN, seconds=(0.5, 0.5))
    (axes,) = figure([replace(case, rows=(*case.rows, in_onednn))], "CPU").axes
    assert {
        line.get_gid(): line.get_ydata()[-1]
        for line in axes.lines
        if line.get_gid() in ("ideal", "ideal, all in oneDNN")
    } == {"ideal": 2, "ideal, all in oneDNN": 4}
    for axes in made.axes:
        assert {label.get_text() for label in axes.texts} == {"x", "d"}
        (ideal,) = (line for line in axes.lines if line.get_gid() == "ideal")
        cut, speed = ideal.get_data()
        assert (cut[-1], speed[-1]) == (50.0, 2.0)
    assert table(case).row_count == 3


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["bench", "prefill", *args])


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "DECODERS", {"small": Decoder("small", "Llama", SMALL)})
    out, plot = tmp_path / "out.json", tmp_path / "out.svg"
    given = ("--visual", "24", "--visual", "32", "--text", "20", "--rounds", "1", "--eager", "--layers", "3")
    plans = ("--schedule", "silent:all", "--schedule", "llava-1.5-7b/16")
    done = run(*given, *plans, "--json", "--out", str(out), "--plot", str(plot))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text())
    assert [case["visual"] for case in report["cases"]] == [24, 32]
    specs = {row["name"]: row["spec"] for row in report["cases"][0]["results"]}
    assert specs["silent:all"] == "silent:0-2"
    assert set(specs) == {EAGER, INDUCTOR, "silent:all", "llava-1.5-7b/16", "FastV-like, layer 1", "VTW-like, layer 1"}
    assert {"command", "device", "dtype", "processor", "versions"} <= set(report)
    assert "<svg" in plot.read_text()
    shown = run("--visual", "24", "--rounds", "1", "--eager", "--layers", "3", "--profile").stdout
    (header,) = (line.split() for line in shown.splitlines() if "products" in line and "attention" in line)
    assert header == ["contender", "products", "attention", "other", "all"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model", "gpt"), "model: expected one of small"),
        (("--dtype", "int8"), "dtype: expected one of float32"),
        (("--device", "nowhere"), "device: 'nowhere' can't be used"),
        (("--layers", "99"), "layers: Qwen3-VL at width 1024 has 1 to 36, got 99"),
        (("--schedule", "late:2"), "late"),
        (("--schedule", "silent:9", "--layers", "4"), "layer"),
        (("--without", "speed"), "without: expected share_rotary, causal, onednn, regions"),
        (("--plot", "x.gif"), "plot: expected a file that ends in"),
        (("--out", "/nowhere/x.json"), "out: there is no folder"),
    ],
)
def test_bad_input_is_named_before_any_work(args: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_work(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(Decoder, "build", no_work)
    done = run(*args)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_list() -> None:
    shown = run("--list").stdout
    assert all(name in shown for name in DECODERS)
