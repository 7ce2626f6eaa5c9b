"""What a server may ask the plug-in for, and what is refused: each with one line that names the setting."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from opskip_compile._compat import serving
from opskip_compile.errors import OptionError, ScheduleError
from opskip_compile.integrations.vllm import settings
from opskip_compile.integrations.vllm.decoder import ServedDecoder
from opskip_compile.integrations.vllm.settings import asked
from opskip_compile.schedule.schedule import Schedule
from tests.helpers.leveled import leveled


@pytest.fixture(autouse=True)
def known_release(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.warn_once.cache_clear()
    monkeypatch.setattr(serving, "installed", lambda: "0.32.0")
    monkeypatch.setattr(serving, "replays_whole_steps", lambda config: False)
    monkeypatch.delenv("OPSKIP_SCHEDULE", raising=False)


def config(opskip: Any = None, **changed: Any) -> Any:
    """vLLM's configuration as far as it is read; ``part__field`` changes a field of a part."""
    parts: dict[str, Any] = {
        "model_config": SimpleNamespace(
            enforce_eager=False, is_multimodal_model=True, is_mm_prefix_lm=False, is_moe=True, is_encoder_decoder=False
        ),
        "parallel_config": SimpleNamespace(
            pipeline_parallel_size=1,
            tensor_parallel_size=1,
            enable_dbo=False,
            enable_expert_parallel=False,
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
            data_parallel_size=1,
        ),
        "speculative_config": None,
        "lora_config": None,
        "kv_transfer_config": None,
        "aux_output_config": SimpleNamespace(enable_return_routed_experts=False),
        "use_v2_model_runner": False,
        "cache_config": SimpleNamespace(enable_prefix_caching=True),
        "additional_config": {} if opskip is None else {"opskip": opskip},
    }
    for name, value in changed.items():
        part, _, field = name.partition("__")
        if field:
            setattr(parts[part], field, value)
        else:
            parts[part] = value
    return SimpleNamespace(**parts)


def test_nobody_asks() -> None:
    assert asked(config()) is None
    assert asked(config(additional_config=None)) is None
    assert asked(config({"schedule": "none"}, lora_config=object())) is None


def test_a_schedule_in_three_places(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Schedule.of("late:0.5")
    for given in ({"schedule": "late:0.5"}, "late:0.5"):
        found = asked(config(given))
        assert found is not None and found.schedule == wanted and not found.options
    monkeypatch.setenv("OPSKIP_SCHEDULE", "late:0.5")
    found = asked(config())
    assert found is not None and found.schedule == wanted
    found = asked(config({"schedule": "silent:0", "strict": True, "lower": "eager"}))
    assert found is not None and found.schedule == Schedule.of("silent:0")
    assert dict(found.options) == {"strict": True, "lower": "eager"}


def test_a_model_of_text_under_the_variable(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is set for everything that runs; a field of the configuration is meant for this model, and refused."""
    monkeypatch.setenv("OPSKIP_SCHEDULE", "late:0.5")
    with caplog.at_level(logging.WARNING, "vllm.opskip"):
        assert asked(config(model_config__is_multimodal_model=False)) is None
    assert "no images" in caplog.text


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (3, "additional_config.opskip: must be"),
        ({"schedul": "late:0.5"}, "additional_config.opskip.schedul: no such field"),
        ({"strict": True}, "additional_config.opskip.schedule: is missing"),
    ],
)
def test_bad_settings(given: Any, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        asked(config(given))


def test_a_schedule_that_is_none() -> None:
    with pytest.raises(ScheduleError):
        asked(config({"schedule": "nonsense"}))


def test_other_modalities() -> None:
    with pytest.raises(OptionError, match="modalities other than image and video; leave modalities= out"):
        asked(config({"schedule": "late:0.5 modalities=audio"}))
    assert asked(config({"schedule": "late:0.5 modalities=image,video"}))


@pytest.mark.parametrize("levels", [False, True], ids=["shares", "levels"])
def test_critical_rows(levels: bool, tmp_path: Path) -> None:
    """They depend on the text behind them, and on all heads."""
    schedule = "attend@keep=0.25:1"
    if levels:
        schedule = str(tmp_path / "levels.json")
        leveled("none", "attend:0-1").save(tmp_path / "levels.json")
    alone = {"cache_config__enable_prefix_caching": False}
    assert asked(config({"schedule": schedule}, **alone))
    for changed, named in (
        ({}, "--no-enable-prefix-caching"),
        ({**alone, "parallel_config__tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({**alone, "use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
    ):
        with pytest.raises(OptionError, match=named):
            asked(config({"schedule": schedule}, **changed))
        assert asked(config({"schedule": "attend:1"}, **changed))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"parallel_config__enable_dbo": True}, "enable_dbo"),
        ({"model_config__enforce_eager": True}, "enforce_eager"),
        ({"model_config__is_multimodal_model": False}, "a model without images"),
        ({"model_config__is_mm_prefix_lm": True}, "both directions"),
        ({"lora_config": object()}, "enable_lora"),
        ({"parallel_config__enable_expert_parallel": True}, "enable_expert_parallel"),
        ({"parallel_config__data_parallel_size": 2}, "data_parallel_size"),
        ({"speculative_config": SimpleNamespace(method="eagle")}, "speculative_config"),
        ({"model_config__is_encoder_decoder": True}, "encoder-decoder"),
        ({"kv_transfer_config": object()}, "kv_transfer_config"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "prefill_context_parallel_size"),
        ({"parallel_config__decode_context_parallel_size": 2}, "decode_context_parallel_size"),
        ({"aux_output_config__enable_return_routed_experts": True}, "enable_return_routed_experts"),
    ],
)
def test_settings_of_vllm_that_skipping_does_not_work_with(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named) as caught:
        asked(config({"schedule": "late:0.5"}, **changed))
    assert "\n" not in str(caught.value)
    assert asked(config(**changed)) is None


def test_graphs_of_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "replays_whole_steps", lambda config: True)
    with pytest.raises(OptionError, match=r"cudagraph_mode.*PIECEWISE"):
        asked(config({"schedule": "late:0.5"}))


def test_what_goes_with_it() -> None:
    assert asked(config({"schedule": "late:0.5"}, speculative_config=SimpleNamespace(method="ngram")))
    other = config({"schedule": "late:0.5"}, parallel_config__data_parallel_size=2, model_config__is_moe=False)
    assert asked(other)


@pytest.mark.parametrize("release", ["", "0.31.2", "0.33.0", "1.0"])
def test_other_releases(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "installed", lambda: release)
    other = config({"schedule": "late:0.5"})
    del other.model_config  # whatever its configuration looks like
    with pytest.raises(OptionError, match=r"knows 0\.32"):
        asked(other)


def test_text_before_an_image_stays(caplog: pytest.LogCaptureFixture) -> None:
    """Presets leave it out; where prompts share prefixes in the cache it is kept, and that is said."""
    with caplog.at_level(logging.WARNING, "vllm.opskip"):
        found = asked(config({"schedule": "silent@through_visual:2 attend:0"}))
        assert asked(config({"schedule": "silent@through_visual:2 attend:0"})) == found
    assert found is not None and found.schedule == Schedule.of("silent:2 attend:0")
    assert caplog.text.count("through_visual") == 1
    assert "--no-enable-prefix-caching" in caplog.text
    whole = asked(config({"schedule": "silent@through_visual:2 attend:0"}, cache_config__enable_prefix_caching=False))
    assert whole is not None and whole.schedule == Schedule.of("silent@through_visual:2 attend:0")
    assert caplog.text.count("through_visual") == 1


class Model(nn.Module):
    """A model of vLLM with so many lists of layers in its language model."""

    def __init__(self, lists: int) -> None:
        super().__init__()
        self.language = nn.ModuleDict({str(i): nn.Module() for i in range(lists)})
        for part in self.language.values():
            part.layers = nn.ModuleList([nn.Linear(1, 1)])

    def get_language_model(self) -> nn.Module:
        return self.language


def test_the_decoder_is_the_one_list_of_layers() -> None:
    model = Model(1)
    assert ServedDecoder.of(model).module is model.language["0"]
    for other in (Model(0), Model(2)):
        with pytest.raises(OptionError, match="lists of decoder layers"):
            ServedDecoder.of(other)
    with pytest.raises(OptionError, match="no language model"):
        ServedDecoder.of(nn.Linear(1, 1))
