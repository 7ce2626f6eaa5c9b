"""The command line: figures against `count_flops`, bad input as one line and exit code 2, and the demo."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

from opskip_compile import Geometry, OpSkipError, Schedule, count_flops, presets
from opskip_compile.cli.main import app
from opskip_compile.demo import easy_vqa, run, show
from opskip_compile.models import optional
from opskip_compile.models.packaged import model as packaged
from opskip_compile.schedule import flops_plot

SMALL = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    """Dynamo compiles one function at most eight times, and other tests have compiled the same one."""
    torch._dynamo.reset()


def call(*arguments: str, columns: int = 100) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, list(arguments))


def parsed(*arguments: str) -> Any:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def cells(table: str, first: str) -> list[str]:
    """The cells of the line of a printed table whose first cell is `first`."""
    rows = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in table.splitlines()]
    return next(row for row in rows if row[0].removesuffix(" *") == first)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return tmp_path


def test_presets_as_table() -> None:
    printed = call("presets").stdout
    for preset in presets():
        name, model, source, *cuts = cells(printed, preset.name)
        assert (model, name.endswith(" *")) == (preset.model, preset.default)
        assert preset.source.startswith(source)
        for visual, cut in zip((576, 1024, 2048), cuts, strict=True):
            flops = count_flops(preset.geometry, visual_tokens=visual, text_tokens=64, schedule=preset.schedule)
            assert cut == f"{flops.cut:.1%}"


def test_presets_as_json() -> None:
    found = {item["name"]: item for item in parsed("presets", "--json")}
    assert len(found) == len(presets())
    for preset in presets():
        item = found[preset.name]
        assert Schedule.from_spec(item["spec"]).rules == preset.schedule.rules
        flops = count_flops(preset.geometry, visual_tokens=576, text_tokens=64, schedule=preset.schedule)
        assert item["cut"]["576"] == flops.cut


@pytest.mark.parametrize("columns", [80, 95, 96, 120])
def test_presets_can_be_read_at_any_width(columns: int) -> None:
    printed = call("presets", columns=columns).stdout
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= columns
    for preset in presets():
        row = cells(printed, preset.name)
        assert re.fullmatch(r"(Op-Skip|ShortV), arXiv \d{4}\.\d{5}", row[-4])
        assert (preset.model in row) == (columns >= 96)


def test_flops_of_a_preset_as_table() -> None:
    printed = call("flops", "--preset", "qwen3-vl-8b/24").stdout
    preset = next(item for item in presets() if item.name == "qwen3-vl-8b/24")
    flops = count_flops(preset.geometry, visual_tokens=1024, text_tokens=64, schedule=preset.schedule)
    assert cells(printed, "total")[3:] == [
        "36",
        f"{flops.dense / 1e12:.3f}",
        f"{flops.skipped / 1e12:.3f}",
        f"{flops.cut:.1%}",
    ]
    attend = [item for item in flops.operators if item.layer in (14, 15, 19)]
    assert cells(printed, "attend")[1:] == [
        "visual",
        "14-15,19",
        "3",
        f"{sum(item.dense for item in attend) / 1e12:.3f}",
        f"{sum(item.skipped for item in attend) / 1e12:.3f}",
        f"{1 - sum(item.skipped for item in attend) / sum(item.dense for item in attend):.1%}",
    ]
    assert cells(printed, "silent")[1:4] == ["through_visual", "24-35", "12"]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("qwen3-vl-8b/24", "0-1,3,6-13,16 2,4-5,17-18,20-23 14-15,19 24-35"),
        ("transform:10-13,20-23,30-33", "0-9,14-19,24-29,34-35 10-13,20-23,30-33"),
    ],
)
def test_flops_table_breaks_layers_behind_commas(spec: str, named: str) -> None:
    printed = call("flops", "--preset", "qwen3-vl-8b/24", "--schedule", spec, columns=80).stdout
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]
    layers = [row[2] for row in rows if len(row) == 7 and row[2]]
    assert "".join(layers) == named.replace(" ", "")
    assert all(re.fullmatch(r"(\d+(-\d+)?(,|$))+", line) for line in layers)


SIZES = (64, 144, 256, 576, 1024, 2048, 2880, 4096, 8192, 16384)


def test_flops_over_image_sizes_as_table() -> None:
    printed = call("flops", "--preset", "qwen3-vl-8b/24", "--text", "20").stdout
    title = "TFLOPs over image sizes, 20 text rows"
    assert title in printed
    preset = next(item for item in presets() if item.name == "qwen3-vl-8b/24")
    for visual in SIZES:
        flops = count_flops(preset.geometry, visual_tokens=visual, text_tokens=20, schedule=preset.schedule)
        assert cells(printed.split(title)[1], str(visual))[1:] == [
            f"{flops.dense / 1e12:.3f}",
            f"{flops.skipped / 1e12:.3f}",
            f"{flops.cut:.1%}",
            f"{flops.ideal_speedup:.2f}x",
        ]


@pytest.mark.parametrize("spec", ["none", "silent:3 attend:1"])
def test_flops_over_image_sizes_as_json(config: Path, spec: str) -> None:
    found = parsed("flops", "--config", str(config), "--schedule", spec, "--visual", "7", "--text", "5", "--json")
    assert [item["visual_tokens"] for item in found["sizes"]] == list(SIZES)
    for item in found["sizes"]:
        flops = count_flops(
            Geometry(4, 64, 160, 4, 2, 16), visual_tokens=item["visual_tokens"], text_tokens=5, schedule=spec
        )
        assert item == {
            "visual_tokens": flops.visual_tokens,
            "text_tokens": 5,
            "dense": flops.dense,
            "skipped": flops.skipped,
            "cut": flops.cut,
            "ideal_speedup": flops.ideal_speedup,
        }


def test_flops_plot(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn: list[tuple[list[int], str]] = []
    draw = flops_plot.figure
    monkeypatch.setattr(
        flops_plot,
        "figure",
        lambda reports, title: (drawn.append(([r.skipped for r in reports], title)), draw(reports, title))[1],
    )
    target = tmp_path / "out.svg"
    for source in (["--preset", "qwen3-vl-8b/24"], ["--config", str(config), "--schedule", "silent:3"]):
        result = call("flops", *source, "--plot", str(target), "--json")
        assert result.exit_code == 0, result.output
        assert result.stderr == f"opskip: wrote {target}\n"
        assert drawn[-1][0] == [item["skipped"] for item in json.loads(result.stdout)["sizes"]]
        assert target.read_text().startswith("<?xml")
    assert [title for _, title in drawn] == [
        "Qwen3-VL-8B: prefill FLOPs with schedule qwen3-vl-8b/24",
        f"{config.name}: prefill FLOPs with schedule silent:3",
    ]


def test_flops_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call("flops", "--preset", "qwen3-vl-8b/24", "--plot", str(tmp_path / "a.png"))
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert 'pip install "opskip-compile[plot]"' in result.stderr


@pytest.mark.parametrize("file", ["", "config.json"])
def test_flops_of_a_config(config: Path, file: str) -> None:
    spec = "silent:3 attend:1"
    sizes = ("--visual", "100", "--text", "20")
    found = parsed("flops", "--config", str(config / file), "--schedule", spec, *sizes, "--json")
    flops = count_flops(
        Geometry(4, 64, 160, 4, 2, 16), visual_tokens=100, text_tokens=20, schedule=Schedule.from_spec(spec)
    )
    assert (found["dense"], found["skipped"], found["cut"]) == (flops.dense, flops.skipped, flops.cut)
    assert found["layer_states"] == ["full", "attend", "full", "silent"]
    assert found["schedule"] == spec
    assert len(found["operators"]) == 8


def test_flops_without_schedule_is_dense(config: Path) -> None:
    found = parsed("flops", "--config", str(config), "--json")
    assert found["dense"] == found["skipped"] > 0


def test_another_schedule_on_a_preset() -> None:
    found = parsed("flops", "--preset", "qwen3-vl-8b/24", "--schedule", "none", "--json")
    assert found["cut"] == 0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["flops", "--preset", "qwen3-vl-8b/21"], "preset: there is no 'qwen3-vl-8b/21'"),
        (["flops", "--preset", "qwen3-vl-8b/20", "--schedule", "silnt:3"], "state: expected one of"),
        (["flops", "--preset", "qwen3-vl-8b/20", "--schedule", "silent:40"], "layer 40 is not in a model of 36"),
        (["flops", "--preset", "qwen3-vl-8b/20", "--schedule", "missing.json"], "'missing.json': file: No such"),
        (["flops", "--preset", "llava-1.5-7b/20", "--schedule", "qwen3-vl-8b/20"], "num_layers: "),
        (["flops", "--preset", "qwen3-vl-8b/20", "--visual", "-1"], "visual_tokens: "),
        (["flops", "--config", "missing"], "config: there is no file 'missing'"),
        (["flops"], "either --preset or --config"),
        (["flops", "--preset", "qwen3-vl-8b/20", "--plot", "a.gif"], "plot: expected a file that ends in .png"),
        (["flops", "--preset", "qwen3-vl-8b/20", "--plot", "gone/a.png"], "plot: there is no folder 'gone'"),
        (["flops", "--preset", "qwen3-vl-8b/20", "--text", "-1"], "text_tokens: "),
        (["flops", "--preset", "qwen3-vl-8b/20", "--config", "x"], "either --preset or --config"),
        (["demo", "--eager", "--model", "missing"], "model: there is no demo model in 'missing'"),
        (["demo", "--eager", "--questions", "9674"], "questions: expected 1 to 9673"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], field: str) -> None:
    if arguments[0] == "demo":
        pytest.importorskip("easy_vqa")
    result = call(*arguments, *(["--json"] if arguments[0] == "flops" else []))
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("opskip: ")
    assert field in lines[0]


@pytest.mark.parametrize("content", ["", "[1]", '{"model_type": "no-such-model"}', "\x00"])
def test_bad_config_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    result = call("flops", "--config", str(tmp_path))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "config: " in result.stderr


def test_config_code_is_never_executed(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    table = {"model_type": "no-such-model", "auto_map": {"AutoConfig": "evil.C"}}
    (tmp_path / "config.json").write_text(json.dumps(table))
    assert call("flops", "--config", str(tmp_path)).exit_code == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("arguments", [["flops", "--visual", "many"], ["nonsense"], ["demo", "--questions", "0"]])
def test_usage_errors_are_exit_code_2(arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "opskip_compile", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("Usage: opskip", "demo", "inspect", "presets", "flops"))


@pytest.mark.parametrize("missing", ["easy_vqa", "PIL.Image"])
def test_missing_package_says_what_to_install(missing: str, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        if name == missing:
            raise ImportError(name)
        return importlib.import_module(name)

    monkeypatch.setattr(optional, "import_module", without)
    result = call("demo", "--eager", "--questions", "2", "--schedule", "none", "--model", str(small_model))
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert 'pip install "opskip-compile[demo]"' in result.stderr


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    with pytest.raises(OpSkipError, match="C\\+\\+ compiler"):
        run.run_demo()


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random layers, laid out as the packaged model."""
    pytest.importorskip("easy_vqa")
    from transformers import Qwen3VLForConditionalGeneration

    from benchmarks.demo_model import tiny_model
    from benchmarks.demo_model.export import export_model

    torch.manual_seed(0)
    processor = tiny_model.build_processor(
        text for q in easy_vqa.load_questions("train") for text in (q.text, q.answer)
    )
    model = Qwen3VLForConditionalGeneration(tiny_model.build_config(processor, layers=2, width=96))
    folder = tmp_path_factory.mktemp("demo") / "model"
    export_model(model.eval(), processor, folder)
    return folder


def test_demo_of_a_small_model(small_model: Path) -> None:
    stages: list[str] = []
    result = run.run_demo(
        questions=60,
        eager=True,
        schedule="attend:0 silent:1",
        model_dir=small_model,
        rounds=2,
        step=lambda what, done, total: stages.append(what),
    )
    assert result.report.layer_states() == ("attend", "silent")
    assert result.report.remaining() == {}
    assert result.graphs == 1, "batches of one shape need one compilation"
    assert result.flops.visual_tokens == 64
    assert result.answers.questions == 60
    assert result.answers.oracle_error < 1e-4
    assert [len(item.decoder) for item in result.times] == [2, 2]
    assert all(d < m for item in result.times for d, m in zip(item.decoder, item.model, strict=True))
    assert {"loading", "reading images", "compiling: opskip", "answering: opskip"} <= set(stages)
    json.dumps(result.to_dict())
    for color in (None, "truecolor"):
        console = Console(width=100, color_system=color, force_terminal=color is not None, highlight=False)
        with console.capture() as printed:
            show.show(result, console)
        lines = printed.get().splitlines()
        assert lines[-1].count(show.closing_line(result)) == 1
        assert sum(line.count("✓") + line.count("✗") for line in lines) == 2 * len(result.examples)
        assert color is None or any("▀" in line for line in lines)


def test_demo_with_nothing_skipped(small_model: Path) -> None:
    result = run.run_demo(questions=4, eager=True, schedule="none", model_dir=small_model, rounds=1)
    assert (result.flops.cut, result.answers.agreement, result.answers.oracle_error) == (0, 1, 0)
    assert "nothing" in result.report.reason


def test_demo_refuses_a_schedule_of_another_layer_count(small_model: Path) -> None:
    with pytest.raises(OpSkipError, match="layer 7 is not in a model of 2 layers"):
        run.run_demo(questions=4, eager=True, schedule="silent:7", model_dir=small_model)


def test_questions_are_evenly_spread() -> None:
    asked = [easy_vqa.Question(i, Path(), str(i), "") for i in range(100)]
    assert [q.image_id for q in run.spread(asked, 4, seed=0)] == [0, 25, 50, 75]
    moved = [q.image_id for q in run.spread(asked, 4, seed=3)]
    assert len(set(moved)) == 4 and moved == [q.image_id for q in run.spread(asked, 4, seed=3)]
    assert len(run.spread(asked, 100, seed=5)) == len({q.image_id for q in run.spread(asked, 100, seed=5)}) == 100


def test_packaged_demo() -> None:
    if not packaged.MODEL_DIR.is_dir() or not packaged.SCHEDULE_FILE.is_file():
        pytest.skip("the packaged demo model or its schedule is not there")
    pytest.importorskip("easy_vqa")
    found = parsed("demo", "--eager", "--questions", "20", "--json")
    assert len(found["skipped_operators"]) > 0
    assert found["answers"]["questions"] == 20
    assert found["schedule"]["origin"] == "packaged with the demo"
    assert found["flops"]["cut"] > 0.3
    assert {"model", "report", "layer_states", "times", "examples", "seconds"} <= set(found)
