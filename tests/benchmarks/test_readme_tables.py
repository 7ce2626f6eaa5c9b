"""The README's tables are those of `benchmarks/results`."""

from __future__ import annotations

import pytest

from benchmarks import readme_tables
from benchmarks.readme_tables import ROOT, filled


def test_the_readme_says_what_was_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(text) == text, "run python -m benchmarks.readme_tables"


def test_a_figure_that_changes_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(name: str) -> object:
        found = real(name)
        if name == "compile_cpu":
            found["results"][0]["seconds"] += 100
        return found

    real = readme_tables.read
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(readme_tables, "read", read)
    assert filled(text) != text


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected one table named prefill, found 0"):
        filled("no tables here")
