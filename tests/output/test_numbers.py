"""Prefixes of large numbers."""

from __future__ import annotations

import pytest

from opskip_compile.output.numbers import prefix


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, (1.0, "")), (999, (1.0, "")), (1000, (1e3, "k")), (10**12 - 1, (1e9, "G")), (10**18, (1e15, "P"))],
)
def test_the_largest_prefix_that_is_reached(count: int, expected: tuple[float, str]) -> None:
    assert prefix(count) == expected
