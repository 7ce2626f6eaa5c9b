"""`CalibrationConfig`: one object or keywords, and errors that name the field."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import opskip_compile as opskip
from opskip_compile.calibration.config import CalibrationOptions
from opskip_compile.calibration.option_checks import configured
from opskip_compile.errors import OptionError
from tests.helpers.families import FAMILIES
from tests.helpers.planted import samples


def test_keywords_are_the_fields_of_the_config() -> None:
    """All but the budget, which is a parameter of its own; types too."""
    hints = get_type_hints(opskip.CalibrationConfig)
    assert list(hints) == [field.name for field in fields(opskip.CalibrationConfig)]
    assert get_type_hints(CalibrationOptions) == {name: kind for name, kind in hints.items() if name != "budget"}


@pytest.mark.parametrize(
    ("keyword", "nearest"), [("metod", "method"), ("hold_out", "holdout"), ("whole_fronts", "whole_front")]
)
def test_an_unknown_keyword_names_the_nearest_one(keyword: str, nearest: str) -> None:
    misspelt: dict[str, Any] = {keyword: 1}
    with pytest.raises(OptionError, match=f"{keyword}: no such option; the nearest known one is '{nearest}'"):
        opskip.calibrate(FAMILIES["llava"].build(2), samples("llava", 2), **misspelt)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget", 2),
        ("method", "magic"),
        ("level", "head"),
        ("search", None),
        ("rows", "all"),
        ("holdout", 1),
        ("seed", -1),
        ("batch", 0),
        ("answer_tokens", True),
        ("refresh", 0.5),
        ("controls", "yes"),
        ("stability", 1),
        ("whole_front", None),
        ("resume", 7),
        ("kept_bytes", -1),
    ],
)
def test_a_bad_value_names_its_field(field: str, value: object) -> None:
    wrong: dict[str, Any] = {field: value}
    with pytest.raises(OptionError, match=f"^{field}: expected "):
        opskip.CalibrationConfig(**wrong)


def test_keywords_take_the_place_of_the_configs() -> None:
    config = opskip.CalibrationConfig(budget=0.2, method="fisher", seed=3)
    changed = configured(opskip.CalibrationConfig, config, {"seed": 4, "budget": 0.3})
    assert (changed.method, changed.seed, changed.budget) == ("fisher", 4, 0.3)
    assert (config.seed, config.budget) == (3, 0.2)
    assert configured(opskip.CalibrationConfig, config, {}) == config
    assert configured(opskip.CalibrationConfig, None, {"seed": 4}) == opskip.CalibrationConfig(seed=4)
    with pytest.raises(FrozenInstanceError):
        config.seed = 5  # type: ignore[misc]
    with pytest.raises(OptionError, match="config: expected CalibrationConfig, got dict"):
        opskip.calibrate(FAMILIES["llava"].build(2), samples("llava", 2), config={"seed": 1})  # type: ignore[arg-type]


def test_a_config_and_keywords_are_the_same_calibration(tmp_path: Path) -> None:
    """The budget by position, by keyword and in the config; the journal shows that nothing was measured again."""
    model, inputs = FAMILIES["llava"].build(2), samples("llava", 2)
    config = opskip.CalibrationConfig(
        budget=0.3, answer_tokens=2, controls=False, stability=False, resume=tmp_path / "journal"
    )
    first = opskip.calibrate(model, inputs, config=config)
    assert first.about["budget"] == "30.0% fewer FLOPs"
    measured = (tmp_path / "journal").read_bytes()
    again = opskip.calibrate(
        model, inputs, 0.3, answer_tokens=2, controls=False, stability=False, resume=tmp_path / "journal"
    )
    assert again.schedule == first.schedule
    assert (tmp_path / "journal").read_bytes() == measured
    other = opskip.calibrate(model, inputs, "45%", config=config)
    assert other.about["budget"] == "45.0% fewer FLOPs"


def test_the_budget_is_read_once_for_all() -> None:
    assert opskip.CalibrationConfig(budget="33.7%").target == opskip.Budget(cut=0.337)
    assert re.fullmatch(r"KL below 0.01", str(opskip.CalibrationConfig(budget="kl<0.01").target))
