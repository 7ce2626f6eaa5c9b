"""Skipping in quantised decoders: FLOPs cut, what stays full and why, and the error against the oracle.

python -m benchmarks.quantized [--only NAME ...] [--questions 4] [--json FILE]

The packaged model is quantised in every way of `schemes.py` and asked a batch of test questions, by the oracle on the
quantised model and compiled. Rounding of activations turns differences in the last bits into steps, so an error is read
beside that of the dense model when each question is asked alone instead of in the batch.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import opskip_compile as opskip
from benchmarks.quantized.schemes import SCHEMES, Scheme
from opskip_compile.backend.reports import REPORTS
from opskip_compile.demo import easy_vqa
from opskip_compile.models.packaged.model import DemoProcessor, encode_prompt, load_processor
from opskip_compile.output.environment import environment
from opskip_compile.report.report import Report
from opskip_compile.schedule.validation import write_json

SCHEDULES = ("late:0.5", "attend:0-7", "silent@keep=0.25:0-7")
Inputs = dict[str, Tensor]


def of_one_length(processor: DemoProcessor, count: int) -> list[easy_vqa.Question]:
    """The first test questions of one length: torchao's float8 makes NaN of rows of zeros, as padding is."""
    questions = easy_vqa.load_questions("test")
    length = len(encode_prompt(questions[0].text, 1, processor))
    return [each for each in questions if len(encode_prompt(each.text, 1, processor)) == length][:count]


def logits(model: Any, inputs: Inputs) -> Tensor:
    """Of the last row of every prompt, float32 ``(batch, vocabulary)``."""
    with torch.no_grad():
        found: Tensor = model(**inputs).logits[:, -1].float()
    return found


def off(got: Tensor, want: Tensor) -> float:
    """Largest difference as a share of the largest logit."""
    return float((got - want).abs().max() / want.abs().max())


def measured(model: Any, schedules: Sequence[str], batch: Inputs, alone: list[Inputs]) -> dict[str, Any]:
    """Every schedule on one model."""
    dense = logits(model, batch)
    one_by_one = torch.cat([logits(model, inputs) for inputs in alone])
    mask = batch["input_ids"] == model.config.image_token_id
    runs = []
    for schedule in schedules:
        with opskip.oracle(model, opskip.Schedule.of(schedule), mask):
            want = logits(model, batch)
        torch._dynamo.reset()
        before = REPORTS.count
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", opskip.NothingSkippedWarning)
            opskip.compile(model, schedule, options={"lower": "eager"})
            got = logits(model, batch)
            opskip.remove(model)
        warned = [str(each.message) for each in caught if issubclass(each.category, opskip.NothingSkippedWarning)]
        reports = [report for report in REPORTS.since(before) if report.operators]
        runs.append(
            {"schedule": schedule, "error": off(got, want), "change": off(dense, want), **said(reports, warned)}
        )
    return {"alone": off(one_by_one, dense), "runs": runs}


def said(reports: list[Report], warned: list[str]) -> dict[str, Any]:
    """What the reports of one call say, and its warnings where no report has an operator."""
    operators = [operator for report in reports for operator in report.operators]
    flops = [(op.flops_before, op.flops_after) for op in operators]
    known = [(before, after) for before, after in flops if before is not None and after is not None]
    cut = 1 - sum(after for _, after in known) / sum(before for before, _ in known) if known else None
    why = [*warned] if not operators else []
    why += [miss.reason for report in reports for miss in report.misses]
    why += [stop.reason for report in reports for stop in report.stops if stop.operator]
    return {
        "flops_cut": cut,
        "skipped": sum(op.skipped for op in operators),
        "left": sorted({name for op in operators for name in op.remaining}),
        "in full": sum(bool(op.remaining) for op in operators) + sum(len(report.misses) for report in reports),
        "why": list(dict.fromkeys(why)),
    }


def tried(scheme: Scheme, schedules: Sequence[str], batch: Inputs, alone: list[Inputs]) -> dict[str, Any]:
    """One scheme, or the words with which it refused this machine."""
    about = {"package": scheme.package, "what": scheme.what}
    try:
        model = scheme.make()
    except (AssertionError, ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        return {**about, "refused": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    kind = next(module for module in model.get_decoder().layers[0].mlp.modules() if not list(module.children()))
    kept = model.lm_head.weight.dtype if hasattr(model, "lm_head") else None
    return {**about, "module": type(kind).__name__, "dtype": str(kept), **measured(model, schedules, batch, alone)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(SCHEMES), default=list(SCHEMES))
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES))
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    torch.manual_seed(0)
    processor = load_processor()
    questions = of_one_length(processor, given.questions)
    batch = dict(easy_vqa.collate(questions, processor))
    alone = [dict(easy_vqa.collate([question], processor)) for question in questions]
    found: dict[str, Any] = {}
    for name in given.only:
        found[name] = tried(SCHEMES[name], given.schedules, batch, alone)
        print(name, found[name], flush=True)
        if given.json:
            write_json({"environment": environment("cpu", "float32"), "schemes": found}, given.json)


if __name__ == "__main__":
    main()
