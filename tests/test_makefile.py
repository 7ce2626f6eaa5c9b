"""``make demo`` installs what the demo needs, ``make test`` what tests need: one environment, in either order."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INTERPRETER = """#!/bin/sh
# Stands for Python: makes an environment whose programs write down how they were called.
mkdir -p "$3/bin"
for program in python opskip; do
    printf '#!/bin/sh\\necho "%s $*" >> "%s"\\n' "$program" "LOG" > "$3/bin/$program"
    chmod +x "$3/bin/$program"
done
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("targets", "installed"),
    [
        (["demo"], [".[demo]"]),
        (["demo", "test", "demo"], [".[demo]", ".[dev]"]),
        (["test", "demo", "test"], [".[dev]"]),
    ],
    ids=["demo", "demo first", "test first"],
)
def test_what_is_installed(targets: list[str], installed: list[str], tmp_path: Path) -> None:
    log, interpreter = tmp_path / "log", tmp_path / "python3"
    interpreter.write_text(INTERPRETER.replace("LOG", str(log)))
    interpreter.chmod(0o755)
    for target in targets:
        command = ["make", target, f"PYTHON={interpreter}", f"VENV={tmp_path / 'venv'}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [words[-1] for words in lines if words[2:4] == ["pip", "install"]] == installed
    ran = {"demo": ["opskip", "demo"], "test": ["python", "-m", "pytest"]}
    last = [words for words in lines if "install" not in words]
    assert [words[: len(ran[target])] for words, target in zip(last, targets, strict=True)] == [ran[t] for t in targets]
