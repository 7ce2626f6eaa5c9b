"""What a compile leaves for later reading: files, log lines, and trace artefacts that tlparse shows."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.passes.pipeline import PASSES
from tests.helpers.own_decoder import EAGER, Decoder, visual

pytestmark = pytest.mark.usefixtures("fresh")


def compiled(**options: object) -> None:
    options = {"schedule": "silent:1", **EAGER, **options}
    torch.compile(Decoder(), backend="opskip", options=options)(torch.randn(1, 12, 16), visual(1, 12, 2, 8))


def test_dump_writes_code_report_and_diff(tmp_path: Path) -> None:
    compiled(dump=str(tmp_path / "some" / "graphs"))
    found = {re.sub(r"graph\d+_", "", p.name): p.read_text() for p in (tmp_path / "some" / "graphs").iterdir()}
    passes = [f"pass{i:02d}_{name}.py" for i, name in enumerate(("insert", "push_down", "cancel", "clean_up"), 1)]
    assert set(found) == {"before.py", "after.py", "report.json", "diff.json", "diff.html", *passes}
    assert "select_rows" in found["after.py"]
    assert "select_rows" not in found["before.py"]
    assert found["after.py"] == found[passes[-1]] != found[passes[0]]
    for name in ("before.py", "after.py", *passes):
        compile(found[name], name, "exec")
    report, last = json.loads(found["report.json"]), opskip.last_report()
    assert report == json.loads(json.dumps(last.to_dict()))
    assert [op["name"] for op in report["operators"] if op["skipped"]] == ["1.attention", "1.ffn"]
    assert json.loads(found["diff.json"]) == json.loads(last.diff().to_json())
    assert "1.ffn" in found["diff.html"]


def test_every_graph_has_files_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        torch._dynamo.reset()
        compiled(dump=tmp_path)
    assert len(list(tmp_path.glob("graph*_diff.json"))) == 2


def test_nothing_rewritten_nothing_dumped(tmp_path: Path) -> None:
    compiled(schedule="none", dump=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"OptionError: options\.dump: '.*file/folder': Not a directory"):
        compiled(dump=tmp_path / "file" / "folder")


def test_one_log_line_a_pass(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="opskip_compile"):
        compiled()
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("opskip_compile")]
    named = [line.split()[1] for line in lines if line.startswith("pass ")]
    assert named == [*PASSES, "report"]
    assert any("4 operators skipped" in line for line in lines)


RUN = """
import torch, opskip_compile as o
def f(h, m):
    h = o.mark_visual(h, m)
    return (h + torch.nn.functional.scaled_dot_product_attention(h, h, h)).sin()
m = torch.tensor([[True, False]])
torch.compile(f, backend='opskip', options={'lower': 'eager', 'schedule': 'transform:0'})(torch.ones(1, 2, 4), m)
"""


def in_a_process(tmp_path: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_trace_holds_both_graphs_and_the_report(tmp_path: Path) -> None:
    """The form that tlparse reads: a line of JSON with the artefact's name, then its text indented by one tab."""
    in_a_process(tmp_path, TORCH_TRACE=str(tmp_path / "trace"))
    written = "".join(p.read_text() for p in (tmp_path / "trace").iterdir())
    found = dict(re.findall(r'"artifact": \{"name": "(opskip_\w+)".*\n((?:\t.*\n)+)', written))
    assert set(found) == {"opskip_before_graph", "opskip_after_graph", "opskip_report"}
    assert "scaled_dot_product_attention" in found["opskip_before_graph"]
    assert "select_rows" not in found["opskip_before_graph"]
    assert "scatter_rows" in found["opskip_after_graph"]
    assert json.loads(found["opskip_report"])["layer_states"] == ["transform"]


def test_torch_logs_show_the_passes(tmp_path: Path) -> None:
    shown = in_a_process(tmp_path, TORCH_LOGS="+opskip_compile")
    passes = re.findall(r"opskip_compile/backend/dump\.py.*\] pass (\w+) ", shown)
    assert {*passes} == {*PASSES, "report"} - {"heads", "causal", "onednn", "regions"}  # gradients are on
    assert "1 of 1 operators skipped" in shown
