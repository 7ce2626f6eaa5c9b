"""Lets every test import the helper modules that stand next to it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of processes costs more than it gives here

import pytest
import torch

from opskip_compile import _compat
from opskip_compile.backend.reports import REPORTS
from opskip_compile.output import progress
from tests.helpers.browser import browser, page  # noqa: F401
from tests.helpers.demo_questions import processor, questions  # noqa: F401


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("support matrix")
    group.addoption("--every-cell", action="store_true", help="every family in every form (an hour)")
    group.addoption("--support-out", metavar="FILE", help="write what the cells say, one JSON line each")


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command without a terminal says where it is after some seconds, so a slow machine would make it say more."""
    for name in ("FIRST", "EVERY"):
        monkeypatch.setattr(progress, name, math.inf)


@pytest.fixture
def fresh() -> Iterator[None]:
    """No compiled code and no report of another test, and no gradients."""
    torch._dynamo.reset()
    REPORTS.clear()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A picture of 64 by 32 pixels: redder to the right, greener to the bottom, with a pattern in blue."""
    module = pytest.importorskip("PIL.Image")
    pytest.importorskip("numpy")
    pixels = bytes(value for y in range(32) for x in range(64) for value in (4 * x, 8 * y, 37 * x * y % 256))
    module.frombytes("RGB", (64, 32), pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def plain_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor is: no contender in oneDNN."""
    monkeypatch.setattr(_compat, "blas_is_slow", lambda: False)
