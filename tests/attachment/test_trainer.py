"""transformers' own `Trainer` on a model that `compile` has compiled, with ``torch_compile`` around it."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import opskip_compile as opskip
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.own_decoder import EAGER

pytest.importorskip("accelerate")

pytestmark = pytest.mark.usefixtures("fresh")
SPEC, STEPS, RATE = "silent:1", 2, 1e-2


class Prompts(Dataset[dict[str, Any]]):
    """The same prompt again and again."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.inputs


def test_it_learns_what_the_oracle_learns(tmp_path: Path) -> None:
    """Two steps: the graph of the decoder skips, inside of what the trainer compiles, and its gradients are used."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    inputs["labels"] = inputs["input_ids"].clone()
    want = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(want.parameters(), lr=RATE)
    with torch.enable_grad(), opskip.oracle(want, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        for _ in range(STEPS):
            optimizer.zero_grad()
            want(**inputs).loss.backward()
            optimizer.step()
    before = model.get_decoder().layers[0].mlp.up_proj.weight.clone()
    opskip.compile(model, SPEC, options=EAGER)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        torch_compile=True,
        torch_compile_backend="eager",
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        Trainer(model, arguments, train_dataset=Prompts(inputs), data_collator=lambda rows: rows[0]).train()
    assert [report.skipped for report in opskip.reports()] == [("1.attention", "1.ffn")]
    for mine, theirs in zip(model.parameters(), want.parameters(), strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert (model.get_decoder().layers[0].mlp.up_proj.weight - before).abs().max() > 1e-5
