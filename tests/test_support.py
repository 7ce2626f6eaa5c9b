"""The support matrix: every cell that was published is still so.

A run holds all forms of one family and a rotating share of the others'; with ``--every-cell`` it holds all of them.
With ``--support-out FILE`` what the cells say is written down (a JSON line each) instead of compared.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import FORMS, ZOO

pytestmark = pytest.mark.usefixtures("fresh")
PUBLISHED = Path(__file__).parents[1] / "benchmarks" / "results" / "support.json"
WHOLE, SHARE = "qwen3_vl", 8


def in_this_run(family: str, form: str) -> bool:
    """All forms of `WHOLE`; of the other families one form of `SHARE`, another one in each family."""
    if family == WHOLE:
        return True
    return not FORMS[form].slow and (list(ZOO).index(family) + list(FORMS).index(form)) % SHARE == 0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-cell")
        cells = [(family, form) for family in ZOO for form in FORMS if every or in_this_run(family, form)]
        metafunc.parametrize(("family", "form"), cells, ids=[f"{family}-{form}" for family, form in cells])


def test_cell(family: str, form: str, request: pytest.FixtureRequest) -> None:
    outcome = FORMS[form].check(ZOO[family])
    out = request.config.getoption("--support-out")
    if out:
        with Path(out).open("a") as file:
            file.write(json.dumps([family, form, outcome.state, outcome.reason]) + "\n")
        return
    cells = json.loads(PUBLISHED.read_text())["cells"]
    assert outcome.state == cells[family][form][0], outcome.reason


def test_no_cell_is_blank() -> None:
    cells = json.loads(PUBLISHED.read_text())["cells"]
    assert {family: set(forms) for family, forms in cells.items()} == {family: set(FORMS) for family in ZOO}
    assert all(reason for forms in cells.values() for state, reason in forms.values() if state != "skips")
