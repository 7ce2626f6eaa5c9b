"""Lets every test import the helper modules that stand next to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from opskip_compile.backend import REPORTS

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def fresh() -> Iterator[None]:
    """No compiled code and no report of another test, and no gradients."""
    torch._dynamo.reset()
    REPORTS.clear()
    with torch.no_grad():
        yield
    torch._dynamo.reset()
