"""The support matrix: every cell that was published is still so.

A run holds a share of the forms of each family, with every column of the matrix; with ``--every-cell`` it holds every
cell.
With ``--support-out FILE`` what the cells say is written down (a JSON line each) instead of compared; cells that stand
there already are left out, so a run that was interrupted goes on.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.support_matrix import matrix
from tests.helpers.families import FAMILIES
from tests.helpers.releases import OLD
from tests.helpers.support import COLUMNS, FORMS, ZOO
from tests.helpers.support.forms import EVERYWHERE

pytestmark = pytest.mark.usefixtures("fresh")
ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "benchmarks" / "results" / "checks" / "support.json"
MORE, SHARE = "qwen3_vl", 48


CELLS = [(family, form) for family in ZOO for form in FORMS if family in FAMILIES or form in EVERYWHERE]


def in_this_run(family: str, form: str) -> bool:
    """An eighth of the forms of `MORE`; of the other families one form of `SHARE`, another one in each family."""
    if family == MORE:
        return list(FORMS).index(form) % 8 == 0
    return not FORMS[form].slow and (list(ZOO).index(family) + list(FORMS).index(form)) % SHARE == 0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        every, out = (metafunc.config.getoption(name) for name in ("--every-cell", "--support-out"))
        there = {tuple(cell[:2]) for cell in read_cells(out)} if out else set()
        cells = [cell for cell in CELLS if (every or in_this_run(*cell)) and cell not in there]
        metafunc.parametrize(("family", "form"), cells, ids=[f"{family}-{form}" for family, form in cells])


def read_cells(path: str) -> list[list[str]]:
    """Family, form, state and reason of each line; empty without the file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()] if Path(path).exists() else []


def test_cell(family: str, form: str, request: pytest.FixtureRequest) -> None:
    outcome = FORMS[form].check(ZOO[family])
    out = request.config.getoption("--support-out")
    if out:
        with Path(out).open("a") as file:
            file.write(json.dumps([family, form, outcome.state, outcome.reason]) + "\n")
        return
    published = json.loads(PUBLISHED.read_text())
    state = published["cells"][family][form][0]
    release = published["versions"]["transformers"]
    if outcome.state != state and OLD:  # right by the oracle all the same: `check` compares
        pytest.skip(f"transformers before 5.23: {family}, {form}: {outcome.state}; {state} with {release}")
    assert outcome.state == state, outcome.reason


def test_a_run_holds_every_column() -> None:
    assert {FORMS[form].column for family, form in CELLS if in_this_run(family, form)} == {*COLUMNS}


def test_no_cell_is_blank() -> None:
    cells = json.loads(PUBLISHED.read_text())["cells"]
    assert [(family, form) for family, forms in cells.items() for form in forms] == CELLS
    assert all(reason for forms in cells.values() for state, reason in forms.values() if state != "skips")
    assert all({FORMS[form].column for form in forms} == {*COLUMNS} for forms in cells.values())


def test_the_page_shows_what_was_measured() -> None:
    cells = json.loads(PUBLISHED.read_text())["cells"]
    assert f"\n{matrix(cells)}\n" in (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
