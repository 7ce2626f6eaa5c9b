"""The model for lmms-eval: its answers are those of transformers and of the oracle, and lmms-eval can run it.

Where lmms-eval is not installed, a base class and two result types take its place, and what needs more is skipped.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import opskip_compile as opskip
from opskip_compile.demo import easy_vqa
from opskip_compile.demo.run import spread
from opskip_compile.errors import OpSkipError
from opskip_compile.models.checkpoint import load_checkpoint
from opskip_compile.models.images import load_image
from opskip_compile.models.packaged.model import SCHEDULE_FILE
from opskip_compile.models.prompts import processed
from opskip_compile.models.rows import visual_tokens
from tests.helpers.checkpoints import TEMPLATE, make_checkpoint

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
needs_lmms_eval = pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")
QUESTIONS = 50
WORDS = ["what is this", "is this what this is what", "this", "what what is this is"]


def stand_in() -> dict[str, ModuleType]:
    """What the module imports of lmms-eval 0.7, and no more."""

    class Lmms:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}
            self.rank = 0

    @dataclass
    class TokenCounts:
        output_tokens: int | None = None

    @dataclass
    class GenerationResult:
        text: str
        token_counts: TokenCounts | None = None

    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.api.instance")
    made = {name: ModuleType(name) for name in names}
    vars(made["lmms_eval.api.model"])["lmms"] = Lmms
    vars(made["lmms_eval.api.instance"]).update(GenerationResult=GenerationResult, TokenCounts=TokenCounts)
    return made


@pytest.fixture(scope="module")
def lmms() -> Iterator[Any]:
    """The module under test."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {} if INSTALLED else stand_in().items():
            patch.setitem(sys.modules, name, module)
        yield importlib.import_module("opskip_compile.integrations.lmms_eval")
        if not INSTALLED:
            sys.modules.pop("opskip_compile.integrations.lmms_eval", None)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Questions about images, of which one lies in a file."""
    made = [Image.new("RGB", (20, 16), (40 * i, 255 - 40 * i, 90)) for i in range(len(WORDS))]
    file = tmp_path_factory.mktemp("images") / "last.png"
    made[-1].save(file)
    return [{"image": image, "words": words} for image, words in zip([*made[:-1], str(file)], WORDS, strict=True)]


def chat(document: dict[str, Any]) -> list[dict[str, Any]]:
    """As lmms-eval makes it of a task's image and text."""
    image = [{"type": "image", "url": document["image"]}] if "image" in document else []
    return [{"role": "user", "content": [*image, {"type": "text", "text": document["words"]}]}]


def ask(model: Any, documents: list[dict[str, Any]], *options: dict[str, Any], messages: Any = chat) -> list[str]:
    """Answers to all documents; the options take turns."""
    model.task_dict = {"task": {"test": documents}}
    arguments = [("", messages, dict(options[i % len(options)]), i, "task", "test") for i in range(len(documents))]
    return [answer.text for answer in model.generate_until([SimpleNamespace(args=each) for each in arguments])]


def plain_answers(folder: Path, documents: list[dict[str, Any]], schedule: str, tokens: list[int]) -> list[str]:
    """Those of transformers in float32, one prompt after the other, under the oracle."""
    model, processor = load_checkpoint(folder)
    model.float()
    found = []
    for document, most in zip(documents, tokens, strict=True):
        image = document["image"]
        picture = load_image(Path(image)) if isinstance(image, str) else image
        inputs = processed(processor, [[picture]], [document["words"]])
        inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        mask = torch.isin(inputs["input_ids"], torch.tensor(visual_tokens(model)))
        with opskip.oracle(model, opskip.Schedule.of(schedule), mask), torch.no_grad():
            made = model.generate(**inputs, max_new_tokens=most, do_sample=False)
        new = made[:, inputs["input_ids"].shape[1] :]
        found += processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return found


@pytest.fixture
def without_inductor(lmms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewritten graphs run as they are, which takes less time."""
    monkeypatch.setattr(lmms.api, "compile", functools.partial(opskip.compile, options={"lower": "eager"}))


@pytest.mark.parametrize(("template", "schedule"), [(None, "none"), (TEMPLATE, "silent:0-1")])
def test_answers_are_those_of_transformers(
    template: str | None,
    schedule: str,
    tmp_path: Path,
    documents: list[dict[str, Any]],
    lmms: Any,
    without_inductor: None,
    fresh: None,
) -> None:
    """In batches, with different limits in one run, from images and files, in the order of the requests."""
    folder = make_checkpoint(tmp_path, template)
    model = lmms.OpSkip(str(folder), schedule, dtype="float32", batch_size="2", max_new_tokens=3)
    found = ask(model, documents, {"until": ["\n\n"]}, {"until": ["\n\n"], "max_new_tokens": 2})
    report = opskip.last_report()
    assert len(report.skipped) == (0 if schedule == "none" else 4)
    assert len(set(found)) > 1
    assert found == plain_answers(folder, documents, schedule, [3, 2] * (len(documents) // 2))
    words = [{"words": document["words"]} for document in documents]
    assert len(set(ask(model, words, {}))) > 1, "prompts without an image"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {"do_sample": False, "max_new_tokens": 9}),
        (
            {"max_new_tokens": 4, "temperature": 0.0, "top_p": 1.0, "num_beams": 1},
            {"max_new_tokens": 4, "num_beams": 1},
        ),
        ({"do_sample": True, "temperature": 0.0}, {"do_sample": False}),
        ({"do_sample": False, "temperature": 0.7}, {"do_sample": False, "temperature": None}),
        ({"temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": True, "top_k": 5}, {"do_sample": True, "top_k": 5}),
        ({"num_beams": 3, "length_penalty": 2.0, "image_aspect_ratio": "pad"}, {"num_beams": 3, "length_penalty": 2.0}),
    ],
)
def test_generation_arguments(asked: dict[str, Any], expected: dict[str, Any], lmms: Any) -> None:
    found = lmms.generation(asked, 9)
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    assert found == {"max_new_tokens": 9, **({} if expected.get("do_sample") else greedy), **expected}
    assert lmms.generation(asked, 9, most=1)["max_new_tokens"] == 1


@pytest.mark.parametrize(
    ("until", "left"),
    [(None, "a\n\nb ASSISTANT: c"), ("ASSISTANT:", "a\n\nb "), (["\n\n", "b"], "a\n\n"), ([], "a\n\nb ASSISTANT: c")],
)
def test_what_is_until_is_cut_off(until: Any, left: str, lmms: Any) -> None:
    assert lmms.cut("a\n\nb ASSISTANT: c", until) == left


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pretrained": "/no/such/folder"}, "pretrained: '/no/such/folder' is no folder"),
        ({"pretrained": "demo", "batch_size": "auto"}, "batch_size: expected a positive number, got 'auto'"),
        ({"pretrained": "demo", "max_new_tokens": 0}, "max_new_tokens: expected"),
        ({"pretrained": "demo", "dtype": "int8"}, "dtype: expected one of"),
        ({"pretrained": "demo", "device": "nowhere"}, "device: 'nowhere' can't be used"),
        ({"pretrained": "demo", "schedule": "'silent:1,77'"}, "8 layers"),
    ],
)
def test_bad_arguments(given: dict[str, Any], message: str, lmms: Any) -> None:
    with pytest.raises(OpSkipError) as caught:
        lmms.OpSkip(**given)
    assert message in str(caught.value)


def test_what_is_refused(lmms: Any, fresh: None) -> None:
    model = lmms.OpSkip("demo")
    with pytest.raises(NotImplementedError, match="log-likelihoods"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="several rounds"):
        model.generate_until_multi_round([])
    for content, message in (
        ([{"type": "video", "url": "a.mp4"}], "task: opskip reads texts and images, not video"),
        ([{"type": "text", "text": "what is the red shape?"}], "one image to a prompt"),
        ([{"type": "image", "url": "no.png"}], "image: cannot read"),
    ):
        with pytest.raises(OpSkipError, match=message):
            ask(model, [{}], {}, messages=lambda _, own=content: [{"role": "user", "content": own}])


@needs_lmms_eval
@pytest.mark.inductor
@pytest.mark.parametrize("schedule", ["none", str(SCHEDULE_FILE)])
def test_lmms_eval_runs_it(schedule: str, tmp_path: Path) -> None:
    """By its own command and entry point, on a task of local files."""
    asked = spread(easy_vqa.load_questions("test"), QUESTIONS, 0)
    lines = [json.dumps({"image": str(q.image_path), "prompt": q.text, "answer": q.answer}) for q in asked]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "utils.py").write_text("from PIL import Image\ndef image(doc): return [Image.open(doc['image'])]\n")
    (tmp_path / "task.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    options = {
        "--model_args": f"pretrained=demo,schedule={schedule}",
        "--tasks": "opskip_easy_vqa",
        "--include_path": str(tmp_path),
        "--batch_size": "25",
        "--output_path": str(tmp_path / "out"),
    }
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "opskip",
        *(part for each in options.items() for part in each),
    ]
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=1800)
    written = list((tmp_path / "out").rglob("*results.json"))
    assert len(written) == 1, run.stdout + run.stderr
    assert json.loads(written[0].read_text())["results"]["opskip_easy_vqa"]["exact_match,none"] >= 0.97
    assert f"opskip: {0 if schedule == 'none' else 10} of 16 operators skip the visual rows" in run.stderr


TASK = """
task: opskip_easy_vqa
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.image
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
- {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
