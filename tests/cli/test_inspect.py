"""``opskip inspect``: every kind of model that can be named, what is printed and written, and bad input."""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
import transformers
from typer.testing import CliRunner, Result

import opskip_compile as opskip
from opskip_compile.backend import entry as backend
from opskip_compile.cli.main import app
from opskip_compile.demo import easy_vqa
from opskip_compile.models import optional, tiny
from opskip_compile.models.explain_target import TINY, Request, find
from opskip_compile.models.packaged import model as packaged
from tests.helpers.checkpoints import TEMPLATE, make_checkpoint
from tests.helpers.entries import changed_entry


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no schedule in the environment, and nothing that Dynamo kept of other tests."""

    def refuse(*_: object) -> None:
        raise AssertionError("inspect must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("OPSKIP_SCHEDULE", raising=False)
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of a small LLaVA and nothing else."""
    folder = tmp_path_factory.mktemp("config")
    tiny.FAMILIES["llava"].config(3).save_pretrained(folder)
    return folder


def call(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["inspect", *map(str, arguments)])


def parsed(*arguments: str | Path) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name: str) -> None:
    found = parsed(name, "--layers", "3", "--schedule", "silent:2 attend:0")
    assert set(found) == {"report", "diff"}
    assert [op["name"] for op in found["report"]["operators"] if op["skipped"]] == ["0.ffn", "2.attention", "2.ffn"]
    assert [layer["state"] for layer in found["diff"]["layers"]] == ["attend", "full", "silent"]
    summary = found["diff"]["summary"]
    assert summary["prompt"]["visual"] == [tiny.ROWS_PER_IMAGE]
    assert (summary["num_layers"], summary["schedule_origin"]) == (3, "given")
    assert not found["report"]["misses"]


def test_tiny_model_has_four_layers_and_is_the_same_every_time() -> None:
    first, second = find(Request("tiny-llava")), find(Request("tiny-llava"))
    assert parsed("tiny-llava", "--schedule", "none")["report"]["num_layers"] == 4
    assert all(torch.equal(first.inputs[name], second.inputs[name]) for name in first.inputs)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_demo_takes_its_schedule_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("easy_vqa")
    monkeypatch.setenv("OPSKIP_SCHEDULE", "silent:0")
    found = parsed("demo")
    assert found["report"]["schedule_origin"] == "packaged with the demo"
    assert found["diff"]["summary"]["schedule_origin"] == "packaged with the demo"
    assert found["report"]["prompt"]["visual"] == [64]
    assert [op["name"] for op in found["report"]["operators"] if op["skipped"]][-2:] == ["7.attention", "7.ffn"]
    given = parsed("demo", "--schedule", "attend:2")
    assert [op["name"] for op in given["report"]["operators"] if op["skipped"]] == ["2.ffn"]


def test_demo_asks_about_the_image(image: Path) -> None:
    asked = find(Request("demo", image=image, prompt="is there a circle in the image?"))
    words = packaged.load_processor().tokenizer.convert_ids_to_tokens(asked.inputs["input_ids"][0])
    assert words[-8:] == ["is", "there", "a", "circle", "in", "the", "image", "?"]
    question = easy_vqa.Question(0, image, "is there a circle in the image?", "")
    want = easy_vqa.collate([question], packaged.load_processor())
    assert torch.equal(asked.inputs["pixel_values"], want["pixel_values"])
    assert asked.about == "the demo model, asked 'is there a circle in the image?'"


def rows_of(prompt: Any) -> tuple[int, int, list[int]]:
    return prompt["batch"], prompt["rows"], prompt["visual"]


def shallow(kind: str) -> Any:
    """The default config of a class, with three decoder layers."""
    found = getattr(transformers, kind)()
    text = found.get_text_config()
    text.num_hidden_layers = 3
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:3]
    return found


@pytest.mark.parametrize(
    "kind", ["Qwen3VLConfig", "Qwen2_5_VLConfig", "LlavaConfig", "InternVLConfig", "Gemma3Config", "MllamaConfig"]
)
def test_folder_needs_only_a_config(kind: str, tmp_path: Path) -> None:
    """The graph's own count of its products is the formula's count for the config."""
    shallow(kind).save_pretrained(tmp_path)
    spec = "silent@through_visual:2 transform:0"
    rows = ("--text-before", "5", "--visual", "48", "--text", "11")
    found = parsed(tmp_path, "--schedule", spec, *rows)
    summary = found["diff"]["summary"]
    assert rows_of(summary["prompt"]) == (1, 64, [48])
    assert [op["rows_after"] for op in found["report"]["operators"]] == [16, 64, 64, 64, 11, 11]
    assert not found["report"]["misses"]
    want = opskip.count_flops(
        transformers.AutoConfig.from_pretrained(tmp_path),
        visual_tokens=48,
        text_tokens=16,
        text_before=5,
        schedule=spec,
    )
    assert (summary["flops_before"], summary["flops_after"]) == (want.dense, want.skipped)


def test_folder_is_built_without_weights(config: Path) -> None:
    target = find(Request(str(config / "config.json")))
    assert all(parameter.is_meta for parameter in target.model.parameters())
    mask = target.inputs["mask"]
    assert (mask.device.type, mask.tolist()) == ("cpu", [[True] * 1024 + [False] * 64])
    mask = find(Request(str(config), text_before=2, visual=3, text=1)).inputs["mask"]
    assert mask.tolist() == [[False, False, True, True, True, False]]


def test_preset_is_found_by_the_config_of_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA's decoder is a plain Llama: only the config around it says which preset fits."""
    transformers.LlavaConfig().save_pretrained(tmp_path)
    target = find(Request(str(tmp_path), visual=4, text=4))
    resolve, calls = backend.resolve_schedule, []
    monkeypatch.setattr(backend, "resolve_schedule", lambda *given: calls.append(given) or resolve(*given))
    with torch.no_grad():
        report = opskip.explain(target.model, target.inputs)
    assert report.schedule_origin == "preset llava-1.5-7b/32"
    assert report.layer_states().count("silent") == 8
    monkeypatch.setenv("OPSKIP_SCHEDULE", "none")
    assert "OPSKIP_SCHEDULE" in resolve(*calls[-1]).origin, "for the same graph"


@pytest.mark.parametrize(("variable", "origin"), [("silent:1", "environment variable OPSKIP_SCHEDULE"), ("", "uncal")])
def test_default_schedule_is_the_backends(
    config: Path, variable: str, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPSKIP_SCHEDULE", variable)
    result = call(config)
    assert f"({origin}" in result.stdout
    warned = [line for line in result.stderr.splitlines() if "uncalibrated" in line]
    assert len(warned) == (1 if variable == "" else 0)
    assert all(line.startswith("opskip: no schedule was given") for line in result.stderr.splitlines())


@pytest.mark.parametrize(("template", "before"), [(None, []), (TEMPLATE, [6])])
def test_checkpoint_with_an_image(template: str | None, before: list[int], tmp_path: Path, image: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", template)
    target = find(Request(str(folder), image=image, prompt="what is this"))
    after = [] if template is None else [7]
    assert target.inputs["input_ids"].tolist() == [[tiny.IMAGE] * 16 + before + [3, 4, 5] + after]
    assert {value.dtype for value in target.inputs.values()} == {torch.int64, torch.bfloat16}
    assert target.inputs["pixel_values"].shape == (1, 3, 16, 16)
    want = tiny.FAMILIES["llava"].build(2, torch.bfloat16).state_dict()
    assert all(torch.equal(value, want[name]) for name, value in target.model.state_dict().items())
    found = parsed(folder / "config.json", "--image", image, "--prompt", "what is this", "--schedule", "silent:1")
    assert rows_of(found["report"]["prompt"]) == (1, 19 + 2 * len(before), [16])
    assert [op["name"] for op in found["report"]["operators"] if op["skipped"]] == ["1.attention", "1.ffn"]


def test_code_of_a_folder_is_never_executed(tmp_path: Path, image: Path) -> None:
    folder, ran = make_checkpoint(tmp_path / "model"), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\n")
    for file, fields in {
        "config.json": ("AutoModelForImageTextToText", "AutoModel", "AutoConfig"),
        "processor_config.json": ("AutoProcessor",),
        "tokenizer_config.json": ("AutoTokenizer",),
    }.items():
        table = json.loads((folder / file).read_text())
        table["auto_map"] = {name: ["evil.C", "evil.C"] if name == "AutoTokenizer" else "evil.C" for name in fields}
        if "text_config" in table:
            table["text_config"]["auto_map"] = table["auto_map"]
        (folder / file).write_text(json.dumps(table))
    for arguments in (["--image", image], []):
        result = call(folder, *arguments, "--schedule", "none")
        assert result.exit_code == 0, "the class of transformers is taken"
    assert not ran.exists()


def test_attention_of_a_config_is_not_taken(config: Path, tmp_path: Path) -> None:
    """It may name code to be downloaded."""
    table = json.loads((config / "config.json").read_text())
    for part in (table, table["text_config"]):
        part.update(attn_implementation="someone/kernels", _attn_implementation="someone/kernels")
    (tmp_path / "config.json").write_text(json.dumps(table))
    found = parsed(tmp_path, "--schedule", "none", "--visual", "4", "--text", "2")
    products = [node["name"] for node in found["diff"]["before"] if "scaled_dot_product_attention" in node["code"]]
    assert len(products) == 3


def test_printed_is_the_diff_and_files_are_its_exports(tmp_path: Path) -> None:
    files = {name: tmp_path / f"diff.{name}" for name in ("html", "dot", "graphml")}
    arguments = ("tiny-internvl", "--layers", "2", "--schedule", "attend:1")
    result = call(*arguments, *(part for name, file in files.items() for part in (f"--{name}", file)))
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [f"opskip: wrote {file}" for file in files.values()]
    torch._dynamo.reset()
    target = find(Request("tiny-internvl", layers=2))
    diff = opskip.explain(target.model, target.inputs, "attend:1").diff()
    assert result.stdout == f"{target.about}\n{diff}\n"
    assert files["dot"].read_text() == diff.to_dot()
    assert nx.read_graphml(files["graphml"]).number_of_nodes() == diff.to_networkx().number_of_nodes()
    assert files["html"].read_text().lower().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diff.dot", "diff.graphml", "diff.html"]
    torch._dynamo.reset()
    shown = call(*arguments, "--operator", "1.ffn", "--dot", files["dot"])
    assert shown.stdout == f"{diff.operator('1.ffn')}\n"
    assert files["dot"].read_text() == diff.to_dot("1.ffn") != diff.to_dot()
    torch._dynamo.reset()
    assert json.loads(call(*arguments, "--json", "--html", files["html"]).stdout)["diff"] == json.loads(diff.to_json())


@pytest.mark.parametrize("columns", [80, 150])
def test_terminal_shows_every_column(columns: int) -> None:
    runner = CliRunner(env={"COLUMNS": str(columns), "FORCE_COLOR": "1"})
    arguments = ["inspect", "tiny-llava", "--layers", "2", "--schedule", "attend:1"]
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", runner.invoke(app, arguments).stdout)
    assert "…" not in plain
    (header,) = [line.split() for line in plain.splitlines() if "rewired   " in line]
    assert header[:3] == ["layers", "operator", "state"] and header[-1] == "removed"


def test_stops_are_printed() -> None:
    with changed_entry("silu", rows=None):
        printed = call("tiny-llava", "--schedule", "attend:1").stdout
    assert re.search(r"computed in full: silu_1 \(silu; 1\.ffn, \w+\.py:\d+\): no rule for silu", printed)


BAD: list[tuple[list[str], str]] = [
    (["tiny-lava"], "model: there is no 'tiny-lava'; the nearest known name is 'tiny-llava', and a folder"),
    (["missing/folder"], "model: there is no 'missing/folder'; the nearest known name is "),
    (["EMPTY"], "model: there is no file 'EMPTY/config.json'"),
    (["BROKEN"], "model: 'BROKEN/config.json' is no transformers config: "),
    (["VIT"], "model: ViTConfig is no model of text and images: it has no visual rows to skip (--visual N shows "),
    (["VIT", "--visual", "4"], "model: the decoder of ViTConfig (ViTModel), without weights can't be captured: "),
    (["CONFIG", "--layers", "2"], "layers: not for a folder"),
    (["CONFIG", "--prompt", "what"], "prompt: not for a folder without --image"),
    (["CONFIG", "--visual", "0"], "visual: expected 1 to 1000000 rows, got 0"),
    (["CONFIG", "--visual", "-3"], "visual: expected 1 to 1000000 rows, got -3"),
    (["CONFIG", "--visual", "100000000000"], "visual: expected 1 to 1000000 rows, got 100000000000"),
    (["CONFIG", "--text", "0"], "text: expected 1 to 1000000 rows, got 0"),
    (["CONFIG", "--text-before", "-1"], "text-before: expected 0 to 1000000 rows, got -1"),
    (["CONFIG", "--image", "IMAGE"], "model: there is no file 'CONFIG/tokenizer.json': the tokenizer is missing"),
    (["CONFIG", "--image", "IMAGE", "--visual", "3"], "visual: not for a folder with --image"),
    (["CONFIG", "--image", "no.png"], "image: cannot read the image no.png: "),
    (["CONFIG", "--image", "TEXT"], "image: cannot read the image TEXT: cannot identify image file"),
    (["CONFIG", "--image", "CUT"], "image: cannot read the image CUT: "),
    (["tiny-llava", "--image", "TEXT"], "image: cannot read the image TEXT: "),
    (["tiny-llava", "--image", "EMPTY"], "image: cannot read the image EMPTY: "),
    (["demo", "--image", "TEXT"], "image: cannot read the image TEXT: "),
    (["demo", "--image", "IMAGE", "--prompt", " "], "prompt: expected some text"),
    (["demo", "--layers", "2"], "layers: not for the demo model"),
    (["demo", "--visual", "2"], "visual: not for the demo model"),
    (["tiny-llava", "--layers", "0"], "layers: expected an integer of at least 1, got 0"),
    (["tiny-llava", "--prompt", "what"], "prompt: not for a tiny model"),
    (["tiny-llava", "--text", "3"], "text: not for a tiny model"),
    (["tiny-llava", "--schedule", "silnt:3"], "state: expected one of"),
    (["tiny-llava", "--schedule", "silent:4"], "layer 4 is not in a model of 4"),
    (["tiny-llava", "--schedule", "gone.json"], "'gone.json': file: No such"),
    (["tiny-llava", "--operator", "9.ffn"], "operator: there is no '9.ffn' in this graph"),
    (["tiny-llava", "--html", "gone/x.html"], "html: there is no folder 'gone' to write 'x.html' to"),
    (["tiny-llava", "--dot", "EMPTY"], "dot: 'EMPTY' is there already and is no file"),
    (["tiny-llava", "--graphml", "PIPE"], "graphml: 'PIPE' is there already and is no file"),
    (["tiny-llava", "--html", "new", "--dot", "./new"], "dot: 'new' is the target of html too"),
]


@pytest.mark.parametrize(
    ("arguments", "field"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], field: str, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("EMPTY", "BROKEN", "VIT", "CONFIG"):
        Path(name).mkdir()
    os.mkfifo("PIPE")
    Path("BROKEN/config.json").write_text("{")
    Path("TEXT").write_text("no picture")
    Path("CUT").write_bytes(image.read_bytes()[:60])
    image.rename("IMAGE")
    transformers.ViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1).save_pretrained("VIT")
    tiny.FAMILIES["llava"].config(2).save_pretrained("CONFIG")
    before = sorted(tmp_path.rglob("*"))
    result = call(*arguments, "--json", *([] if "--html" in arguments else ["--html", "out.html"]))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if "no schedule was given" not in line]
    assert line.startswith("opskip: ")
    assert field in line
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("processor_config.json", "there is no file 'FOLDER/preprocessor_config.json'"),
        ("tokenizer.json", "there is no file 'FOLDER/tokenizer.json'"),
        ("model.safetensors", "there is no file 'FOLDER/model.safetensors'"),
        ("config.json", "there is no file 'FOLDER/config.json'"),
    ],
)
def test_incomplete_checkpoint_is_one_line(missing: str, said: str, tmp_path: Path, image: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    (folder / missing).unlink()
    result = call(folder, "--image", image)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    assert said.replace("FOLDER", str(folder)) in result.stderr


def test_a_processor_that_leaves_the_image_out_is_named(tmp_path: Path, image: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "user {{ messages[0]['content'][1]['text'] }}")
    result = call(folder, "--image", image)
    assert result.exit_code == 2
    assert "made a prompt without visual rows" in result.stderr or "refuses image and prompt" in result.stderr


def test_missing_pillow_says_what_to_install(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        if name == "PIL.Image":
            raise ImportError(name)
        return importlib.import_module(name)

    monkeypatch.setattr(optional, "import_module", without)
    result = call("tiny-llava", "--image", image)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert 'pip install "opskip-compile[demo]"' in result.stderr


def test_steps_are_told(config: Path) -> None:
    told: list[str] = []
    find(Request(str(config)), told.append)
    assert told == ["reading the config", "building the decoder"]
