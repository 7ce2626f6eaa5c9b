"""The support matrix: families x forms in which people run them; each cell is measured against the oracle.

`ZOO` holds the families, `FORMS` the forms; the modules imported here register the forms.
"""

from __future__ import annotations

from tests.helpers.support import (  # noqa: F401
    basic,
    by_inductor,
    calls,
    compiled,
    exported,
    inputs,
    keeping,
    numerics,
    outputs,
    turns,
    videos,
)
from tests.helpers.support.forms import COLUMNS, REGISTERED, Form
from tests.helpers.support.zoo import ZOO

keeping.register()
__all__ = ["COLUMNS", "FORMS", "ZOO"]

FORMS: dict[str, Form] = dict(sorted(REGISTERED.items(), key=lambda item: COLUMNS.index(item[1].column)))
