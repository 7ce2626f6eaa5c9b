"""When vLLM loads models: the target is looked at, a draft of speculative decoding is not."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn

from opskip_compile._compat import serving

NAMES = (
    "vllm",
    "vllm.model_executor",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.model_loader.base_loader",
)


@pytest.fixture
def base_loader(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of vLLM as far as it is touched."""
    modules = {name: ModuleType(name) for name in NAMES}
    found: Any = modules[NAMES[-1]]
    modules[NAMES[-2]].base_loader = found  # type: ignore[attr-defined]

    class BaseModelLoader:
        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
            model = nn.Linear(1, 1)
            found.process_weights_after_loading(model, model_config, "cpu")
            return model

    class LoaderOfItsOwn(BaseModelLoader):
        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
            return super().load_model(vllm_config, model_config, prefix) if prefix == "super" else nn.Linear(2, 2)

    found.BaseModelLoader, found.LoaderOfItsOwn = BaseModelLoader, LoaderOfItsOwn
    found.process_weights_after_loading = lambda model, config, device: found.processed.append(model)
    found.processed = []
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def test_targets_and_drafts(base_loader: Any) -> None:
    before, after = list[Any](), list[Any]()
    for _ in range(2):  # vLLM may load plug-ins several times
        serving.on_load(lambda model, config: before.append(model), lambda model, config: after.append(model))
    target, draft = SimpleNamespace(), SimpleNamespace()
    config = SimpleNamespace(model_config=target)
    loader = base_loader.BaseModelLoader()
    model = loader.load_model(vllm_config=config, model_config=target)
    other = loader.load_model(config, draft, "draft")
    assert before == after == [model]
    assert base_loader.processed == [model, other]


def test_a_loader_of_its_own(base_loader: Any) -> None:
    """Not silently dense: it is heard too, and once where it calls the base class."""
    before, after = list[Any](), list[Any]()
    serving.on_load(lambda model, config: before.append(model), lambda model, config: after.append(model))
    config = SimpleNamespace(model_config=SimpleNamespace())
    own = base_loader.LoaderOfItsOwn().load_model(config, config.model_config)
    assert (before, after) == ([], [own])
    other = base_loader.LoaderOfItsOwn().load_model(config, config.model_config, "super")
    assert (before, after) == ([other], [own, other])


def test_a_model_that_fails_to_load(base_loader: Any) -> None:
    seen = list[Any]()
    serving.on_load(lambda model, config: None, lambda model, config: seen.append(model))
    config = SimpleNamespace(model_config=SimpleNamespace())
    base_loader.processed = None
    with pytest.raises(AttributeError):
        base_loader.BaseModelLoader().load_model(config, config.model_config)
    base_loader.processed = []
    base_loader.process_weights_after_loading(nn.Linear(1, 1), config.model_config, "cpu")
    assert len(base_loader.processed) == 1 and not seen
