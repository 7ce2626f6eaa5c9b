"""`EvaluationConfig`: one object or keywords, and errors that name the field."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from torch import nn

import opskip_compile as opskip
from opskip_compile.calibration.option_checks import configured
from opskip_compile.errors import OptionError
from opskip_compile.evaluation.config import EvaluationOptions
from opskip_compile.evaluation.methods import CALIBRATED, METHODS, UNCALIBRATED


def test_keywords_are_the_fields_of_the_config() -> None:
    hints = get_type_hints(opskip.EvaluationConfig)
    assert list(hints) == [field.name for field in fields(opskip.EvaluationConfig)]
    assert get_type_hints(EvaluationOptions) == hints


@pytest.mark.parametrize(
    ("keyword", "nearest"), [("method", "methods"), ("cut", "cuts"), ("resample", "resamples"), ("time", "timed")]
)
def test_an_unknown_keyword_names_the_nearest_one(keyword: str, nearest: str) -> None:
    """Before the model or a file is looked at."""
    misspelt: dict[str, Any] = {keyword: 1}
    with pytest.raises(OptionError, match=f"{keyword}: no such option; the nearest known one is '{nearest}'"):
        opskip.evaluate(nn.Identity(), "gone.jsonl", processor=None, **misspelt)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("methods", ("best",)),
        ("cuts", (0.2, 1.5)),
        ("rows", "text"),
        ("random_seeds", 0),
        ("limit", 0),
        ("calibration_limit", 2.5),
        ("batch", 0),
        ("answer_tokens", True),
        ("lower", "fast"),
        ("rounds", -1),
        ("timed", None),
        ("resamples", 0),
        ("seed", -1),
        ("resume", 7),
    ],
)
def test_a_bad_value_names_its_field(field: str, value: object) -> None:
    wrong: dict[str, Any] = {field: value}
    with pytest.raises(OptionError, match=f"^{field}: expected "):
        opskip.EvaluationConfig(**wrong)


def test_keywords_take_the_place_of_the_configs() -> None:
    config = opskip.EvaluationConfig(methods=("vtw",), seed=3)
    changed = configured(opskip.EvaluationConfig, config, {"seed": 4})
    assert (changed.methods, changed.seed, config.seed) == (("vtw",), 4, 3)
    with pytest.raises(OptionError, match="config: expected EvaluationConfig, got CalibrationConfig"):
        opskip.evaluate(nn.Identity(), "gone.jsonl", processor=None, config=opskip.CalibrationConfig())  # type: ignore[arg-type]


def test_methods_and_cuts_are_kept_once_and_in_order() -> None:
    config = opskip.EvaluationConfig(methods=["vtw", "late", "vtw"], cuts=[0.5, 0.2, 0.5])
    assert config.methods == ("vtw", "late")
    assert config.cuts == (0.2, 0.5)
    assert config == opskip.EvaluationConfig(methods=("vtw", "late"), cuts=(0.2, 0.5))


def test_default_methods_are_those_that_can_take_part() -> None:
    config = opskip.EvaluationConfig()
    assert config.methods_for(can_calibrate=True, has_schedules=False) == (*CALIBRATED, *UNCALIBRATED)
    assert config.methods_for(can_calibrate=False, has_schedules=False) == UNCALIBRATED
    assert config.methods_for(can_calibrate=True, has_schedules=True) == ()
    with pytest.raises(OptionError, match="calibration: needed by the method 'shortv'"):
        opskip.EvaluationConfig(methods=("vtw", "shortv")).methods_for(can_calibrate=False, has_schedules=False)
    with pytest.raises(OptionError, match=r"calibration: needed by the method 'pruned\+operators'"):
        opskip.EvaluationConfig(methods=("pruned+operators",)).methods_for(can_calibrate=False, has_schedules=False)
    assert set(METHODS) - {*CALIBRATED, *UNCALIBRATED} == {"pruned+operators", "pruned+operators+keep"}
