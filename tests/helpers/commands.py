"""Calling ``opskip`` in this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from opskip_compile.cli.main import app


def call(*arguments: str | Path, columns: int = 120) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, list(map(str, arguments)))


def one_line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("opskip: ")
    return line.removeprefix("opskip: ")
