"""Plots as files: other suffixes are refused, a package that is missing is named, and a failure leaves the old file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from opskip_compile import OpSkipError
from opskip_compile.output.plots import check_plot, write_figure

pytest.importorskip("matplotlib")


def empty() -> Any:
    from matplotlib.figure import Figure

    return Figure()


@pytest.mark.parametrize("name", ["plot", "plot.gif", "plot.png.txt"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    for refused in (lambda: check_plot(tmp_path / name), lambda: write_figure(empty, tmp_path / name)):
        with pytest.raises(OpSkipError, match=r"plot: expected a file that ends in \.png, \.svg, \.pdf"):
            refused()
    assert not list(tmp_path.iterdir())


def test_missing_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OpSkipError, match=r'pip install "opskip-compile\[plot\]"'):
        write_figure(empty, tmp_path / "a.png")


def test_a_plot_replaces_the_file_and_a_failure_does_not(tmp_path: Path) -> None:
    def broken() -> Any:
        raise RuntimeError

    target = tmp_path / "a.svg"
    write_figure(empty, target)
    drawn = target.read_text()
    assert drawn.startswith("<?xml")
    with pytest.raises(RuntimeError):
        write_figure(broken, target)
    assert target.read_text() == drawn
    assert list(tmp_path.iterdir()) == [target]
