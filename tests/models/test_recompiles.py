"""How often prompts of other shapes make Dynamo compile again; the table of `benchmarks/recompiles.py`, in part."""

from __future__ import annotations

import pytest

from benchmarks.recompiles import count
from tests.helpers.releases import since_5_23

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.mark.parametrize(
    ("family", "batch", "mode", "most"),
    [
        ("qwen3_vl", 4, "automatic dynamic shapes", 3),
        ("qwen3_vl", 4, "mark_dynamic (decoder)", 1),
        ("llava", 1, "automatic dynamic shapes", 3),
        ("llava", 1, "dynamic=True", 1),
    ],
)
def test_twelve_layouts(family: str, batch: int, mode: str, most: int) -> None:
    compiles = count(mode, family, batch, dense=False)
    assert isinstance(compiles, int)
    assert 1 <= compiles <= most
    assert compiles <= count(mode, family, batch, dense=True)


@since_5_23("the dense decoder is compiled eight times, which is at the limit and not above")
def test_mixed_traffic_stays_below_the_recompile_limit() -> None:
    """Prompts with images, prompts without and decode steps each have the limit for themselves."""
    assert count("traffic, batches 1 to 4", "qwen3_vl", 4, dense=True) == "over 8"
    assert isinstance(count("traffic, batches 1 to 4", "qwen3_vl", 4, dense=False), int)
