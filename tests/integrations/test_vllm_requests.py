"""What the plug-in reads of the requests of a step, in both of vLLM's model runners, without vLLM."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from opskip_compile._compat.served_requests import RequestRows, _last_visual, on_rows


def feature(offset: int, length: int, embeds: list[int] | None = None, modality: str = "image") -> Any:
    """A placeholder as vLLM describes it; ``embeds`` are the rows of it that hold an embedding."""
    is_embed = None
    if embeds is not None:
        is_embed = torch.zeros(length, dtype=torch.bool)
        is_embed[embeds] = True
    place = SimpleNamespace(offset=offset, length=length, is_embed=is_embed)
    return SimpleNamespace(modality=modality, mm_position=place)


@pytest.mark.parametrize(
    ("features", "last"),
    [
        ([], -1),
        ([feature(3, 4)], 6),
        ([feature(3, 4, [0, 1, 2])], 5),  # a row of text ends the placeholder
        ([feature(9, 4), feature(2, 3)], 12),
        ([feature(2, 3), feature(9, 4, [])], 4),  # a placeholder without embeddings
        ([feature(2, 3), feature(9, 4, modality="audio")], 4),
    ],
)
def test_the_last_visual_row(features: list[Any], last: int) -> None:
    assert _last_visual(features) == last


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """Modules with the two classes, by vLLM's names."""

    class GPUModelRunner:
        def _gather_mm_embeddings(self, scheduled: Any, shift: int = 0) -> Any:
            return "first"

    class EncoderRunner:
        def gather_mm_embeddings(
            self, names: Any, total: int, counts: Any, starts: Any, lens: Any, computed: Any, draft_lookahead: int = 0
        ) -> Any:
            return "second"

    for name, part in {"gpu.mm.encoder_runner": EncoderRunner, "gpu_model_runner": GPUModelRunner}.items():
        path = f"vllm.v1.worker.{name}"
        for i in range(1, path.count(".") + 1):
            outer = ".".join(path.split(".")[:i])
            monkeypatch.setitem(sys.modules, outer, ModuleType(outer))
        module = ModuleType(path)
        setattr(module, part.__name__, part)
        monkeypatch.setitem(sys.modules, path, module)
    yield GPUModelRunner, EncoderRunner


def test_both_runners_tell_the_requests(runners: tuple[Any, Any]) -> None:
    told: list[Any] = []
    on_rows(lambda model, requests: told.append((model, requests)))
    on_rows(lambda model, requests: told.append("twice"))
    first, second = (kind() for kind in runners)
    first.model, second.model = "first model", "second model"
    image = feature(1, 4)
    first.requests = {
        "a": SimpleNamespace(num_computed_tokens=0, num_prompt_tokens=9, mm_features=[image]),
        "b": SimpleNamespace(num_computed_tokens=20, num_prompt_tokens=12, mm_features=None),
    }
    first.input_batch = SimpleNamespace(req_ids=["b", "a"])
    scheduled = SimpleNamespace(num_scheduled_tokens={"a": 5, "b": 1})
    assert first._gather_mm_embeddings(scheduled) == "first"
    assert first._gather_mm_embeddings(scheduled, 1) == "first"  # a drafting model looks ahead
    assert told == [("first model", [RequestRows(20, 1, 12, -1), RequestRows(0, 5, 9, 4)])]
    told.clear()
    second.encoder_cache = SimpleNamespace(mm_features={"a": [image], "b": []})
    given = (["a", "b"], 7, np.array([5, 2]), None, None, np.array([3, 0]))
    assert second.gather_mm_embeddings(*given) == "second"
    assert second.gather_mm_embeddings(*given, draft_lookahead=1) == "second"
    assert told == [("second model", [RequestRows(3, 5, None, 4), RequestRows(0, 2, None, -1)])]
