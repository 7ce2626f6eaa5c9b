"""Entries of the table of operations, changed for a while: how a test breaks a rule or a fact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from opskip_compile.passes.ops import TABLE
from opskip_compile.passes.ops.table import forget


@contextmanager
def changed_entry(name: str, **changes: Any) -> Iterator[None]:
    """The entry ``name`` with other fields."""
    before = TABLE[name]
    TABLE[name] = replace(before, **changes)
    forget()
    try:
        yield
    finally:
        TABLE[name] = before
        forget()
