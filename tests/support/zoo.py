"""The families of the support matrix, by name."""

from __future__ import annotations

from families import FAMILIES

from support.forms import Member

ZOO: dict[str, Member] = {**FAMILIES}
