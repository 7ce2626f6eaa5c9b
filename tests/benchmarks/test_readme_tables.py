"""The tables of README and docs are those of `benchmarks/results`."""

from __future__ import annotations

import pytest

from benchmarks.readme_tables import PAGES, filled
from benchmarks.tables import figures
from benchmarks.tables.figures import ROOT
from benchmarks.tables.front import front


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_was_measured(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert filled(page, text) == text, "run python -m benchmarks.readme_tables"


@pytest.mark.parametrize(
    ("page", "file", "change"),
    [
        ("README.md", "prefill/prefill_cpu_4b_36", lambda found: found["cases"][0]["results"][3].update(ideal=17.0)),
        ("docs/compile-time.md", "compile/compile_cpu", lambda found: found["results"][0].update(seconds=117.0)),
    ],
)
def test_a_figure_that_changes_shows(page: str, file: str, change: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(name: str) -> object:
        found = real(name)
        if name == file:
            assert callable(change)
            change(found)
        return found

    real = figures.read
    text = (ROOT / page).read_text(encoding="utf-8")
    monkeypatch.setattr(figures, "read", read)
    assert filled(page, text) != text


def test_the_front_page_has_five_rows_at_most() -> None:
    assert len(front().splitlines()) <= 2 + 5


@pytest.mark.parametrize("page", PAGES)
def test_a_table_without_a_place_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match=f"{page}: expected one table named {next(iter(PAGES[page]))}, found 0"):
        filled(page, "no tables here")
