"""Code for a GPU that is not there: what is read off a module, and one graph on the whole way."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.cuda_code.reading import Code

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.cuda_code"]
HAS_CUDA = torch.version.cuda is not None and importlib.util.find_spec("triton") is not None
MODULE = """
triton_poi_fused_0 = async_compile.triton("triton_poi_fused_0", "...")
triton_poi_fused_1 = async_compile.triton("triton_poi_fused_1", "...")

def region0(args):
    arg0, arg1 = args
    triton_poi_fused_0.run(arg0, 8, stream=raw_stream0)
    buf1 = torch.ops.opskip.critical_rows.default(arg0, False, arg1, arg1, arg1{room})
    return (buf1, )

def partition_0(args):
    buf0, arg1, u0 = args
    buf1 = buf0[0]
    extern_kernels.mm(buf1, arg1, out=buf2)
    buf3 = region0([buf1, arg1])
    buf4 = region0([buf1, arg1])
    return (buf3, )

class Runner:
    def call(self, args):
        arg0, arg1 = args
        triton_poi_fused_1.run(arg0, 8, stream=raw_stream0)
        buf0 = torch.ops.opskip.kept_rows.default(arg0, False{room})
        u0 = buf0[0].size(1)
        buf9.copy_(arg0, False)
        partition0_args = [buf0, arg1, u0]
        (buf3, ) = self.partitions[0](partition0_args)
        return (buf3, )
"""


def test_reading() -> None:
    code = Code.of([MODULE.replace("{room}", "")])
    assert code.to_dict() == {
        "kernels": 2,
        "launches": 3,
        "extern": {"mm": 1, "opskip.critical_rows": 2, "opskip.kept_rows": 1},
        "sizes_found": 1,
        "host_waits": {"copy between host and device": 1, "opskip.kept_rows": 1},
        "recorded_parts": 1,
        "unrecordable": {"an argument that is no tensor": 1, "opskip.critical_rows": 2},
    }


@pytest.mark.parametrize("room, waits", [(", arg9", False), (", room=arg9", False), (", room=None", True)])
def test_room(room: str, waits: bool) -> None:
    if room == ", arg9":
        code = Code.of([MODULE.replace("arg1, arg1, arg1{room}", "arg1, arg1, arg1, arg9").replace("{room}", room)])
    else:
        code = Code.of([MODULE.replace("{room}", room)])
    assert ("opskip.kept_rows" in code.waits) is waits
    assert ("opskip.critical_rows" in code.unrecordable) is waits


@pytest.mark.skipif(HAS_CUDA, reason="torch is built with CUDA, and Triton is there")
def test_what_is_missing() -> None:
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is built without CUDA" in done.stderr or "Triton is not installed" in done.stderr


@pytest.mark.inductor
@pytest.mark.skipif(not HAS_CUDA, reason="needs torch built with CUDA, and Triton; no GPU")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: it needs no pretending")
def test_counted_rows(tmp_path: Path) -> None:
    """Whole operators of a small model, rows counted: every kernel compiles, and nothing is asked of the device."""
    only = ["--only", "LLaVA-1.5, 4 small layers, compiled in place: whole operators, CUDA graphs"]
    file = tmp_path / "found.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*COMMAND, *only, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(file.read_text())["found"]
    assert found["kernels"] == found["cubins"] > 10 and found["recorded_parts"] == 1
    assert not found["sizes_found"] and not found["host_waits"] and not found["unrecordable"]
    assert {name for name in found["extern"] if name.startswith("opskip.")} == {"opskip.kept_rows", "opskip.shared"}
