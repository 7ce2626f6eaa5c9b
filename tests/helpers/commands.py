"""Calling ``opskip`` in this process."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from opskip_compile.cli.main import app
from opskip_compile.output import progress


def call(*arguments: str | Path, columns: int = 120) -> Result:
    """Without lines of progress, of which a slow machine would write more."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FIRST", "EVERY"):
            patch.setattr(progress, name, math.inf)
        return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, list(map(str, arguments)))


def one_line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("opskip: ")
    return line.removeprefix("opskip: ")
