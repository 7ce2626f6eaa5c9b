"""Commands print on stderr what their reader can act on, also where torchao is installed, which is not quiet."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.checkpoints import make_checkpoint

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "inspect tiny-llava --layers 2 --schedule late:0.5",
    "demo --eager --questions 1",
    "calibrate --model demo --limit 2 --method update_norm --search scores "
    "--no-controls --no-stability --no-whole-front",
)


# torch's own word to whoever has Python 3.13.0: that 3.13.1 is faster.
QUIET = {**os.environ, "PYTHONWARNINGS": "ignore:Guards may run slower on Python 3.13.0"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=QUIET)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.partition(" ")[0])
def test_a_command_says_nothing_on_stderr_but_where_it_is(command: str) -> None:
    """A slow machine makes it say that."""
    pytest.importorskip("torchao")
    done = run("-m", "opskip_compile", *command.split())
    assert done.stdout
    lines = re.sub(r"^opskip \[\d+:\d\d\] .*\n", "", done.stderr, flags=re.MULTILINE)
    assert lines == ""


QUANTISED = """
import sys
from pathlib import Path
from opskip_compile.cli.late_imports import import_torchao_late
import_torchao_late()
import torch, transformers, transformers.modeling_utils
assert "torchao" not in sys.modules

from torchao.quantization import Int8WeightOnlyConfig
from opskip_compile.models.checkpoint import load_checkpoint
plain, quantised = sys.argv[1:]
how = {"dtype": torch.bfloat16, "quantization_config": transformers.TorchAoConfig(Int8WeightOnlyConfig(version=2))}
first = transformers.AutoModelForImageTextToText.from_pretrained(plain, **how)
first.save_pretrained(quantised)
transformers.AutoProcessor.from_pretrained(plain).save_pretrained(quantised)
second, _ = load_checkpoint(Path(quantised))
for model in (first, second):
    print(type(model.get_decoder().layers[0].mlp.gate_proj.weight).__name__)
"""


def test_a_model_that_torchao_quantises_is_saved_and_loaded(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    plain = make_checkpoint(tmp_path / "plain")
    assert run("-c", QUANTISED, str(plain), str(tmp_path / "quantised")).stdout.split() == ["Int8Tensor"] * 2
