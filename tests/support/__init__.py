"""The support matrix: families x forms in which people run them; each cell is measured against the oracle.

`ZOO` holds the families, `FORMS` the forms; the modules imported here register the forms in the order of the columns.
"""

from __future__ import annotations

from support import basic, calls, inputs, outputs, turns, videos  # noqa: F401
from support.forms import FORMS
from support.zoo import ZOO

__all__ = ["FORMS", "ZOO"]
