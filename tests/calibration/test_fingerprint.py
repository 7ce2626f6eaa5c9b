"""The digest of a model is that of the model: not of the file it was loaded from, nor of how."""

from __future__ import annotations

import copy

import torch

from opskip_compile.calibration.fingerprint import fingerprint
from opskip_compile.models.tiny import FAMILIES


def test_what_a_config_says_of_its_file_does_not_matter() -> None:
    model = FAMILIES["qwen3_vl"].build(2)
    same = copy.deepcopy(model)
    same.config.dtype = same.config.text_config.dtype = torch.float16
    same.config._name_or_path = "elsewhere"
    assert fingerprint(same) == fingerprint(model)


def test_another_model_has_another() -> None:
    model = FAMILIES["qwen3_vl"].build(2)
    other = copy.deepcopy(model)
    next(other.parameters()).data[0] += 1
    wider = copy.deepcopy(model)
    wider.config.text_config.rms_norm_eps *= 2
    found = {fingerprint(each) for each in (model, other, wider, copy.deepcopy(model).to(torch.bfloat16))}
    assert len(found) == 4
