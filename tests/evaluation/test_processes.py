"""An evaluation of several processes: one result whatever their number, also after one was killed, and no waiting."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import distributed

import opskip_compile as opskip
from opskip_compile.calibration import costs
from opskip_compile.errors import OpSkipError
from opskip_compile.models.checkpoint import load_checkpoint
from opskip_compile.models.jsonl import Line
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.commands import call
from tests.helpers.families import FAMILIES
from tests.helpers.processes import ends_at, several

evaluating = import_module("opskip_compile.evaluation.evaluate")
FAST: dict[str, Any] = {"lower": "eager", "rounds": 0, "answer_tokens": 2, "batch": 2, "resamples": 50, "cuts": (0.4,)}
METHODS: dict[str, Any] = {"methods": ("per-prompt", "pruned+operators", "vtw", "random"), "random_seeds": 2}
QUICK: dict[str, Any] = {"methods": ("late", "random-tokens"), "random_seeds": 1}
LAYERS = 2


@pytest.fixture(autouse=True, scope="module")
def prepared(folder: Path) -> Iterator[None]:
    """The decoder is captured once, by the process of which the others are copies, with one thread as they have."""
    real, known, threads = costs.compiled_report, {}, torch.get_num_threads()

    def report(model: Any, samples: Any, keep: float = 0.0, levels: bool = False) -> Any:
        if (keep, levels) not in known:
            known[keep, levels] = real(model, samples, keep, levels)
        return copy.copy(known[keep, levels])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "compiled_report", report)
        torch.set_num_threads(1)
        evaluated(0, folder, None, QUICK)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A processor, and twelve pictures."""
    folder = make_checkpoint(tmp_path_factory.mktemp("processor"))
    drawn = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8, generator=drawn)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


def lines(folder: Path, split: str, first: int) -> list[Line]:
    """Twelve questions about six pictures."""
    prompts, answers = ("what is this", "is this what what"), ("word9", "this", "what")
    return [
        Line(f"{split}, line {i}", (folder / f"{first + i // 2}.png",), prompts[i % 2], answers, split)
        for i in range(12)
    ]


def evaluated(rank: int, folder: Path, kept: Path | None, options: dict[str, Any]) -> tuple[bytes, int]:
    """The result as JSON, and how many batches this process has answered."""
    count, greedy = 0, evaluating.greedy

    def counting(*args: Any) -> Any:
        nonlocal count
        count += 1
        return greedy(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluating, "greedy", counting)
        result = opskip.evaluate(
            FAMILIES["llava"].build(LAYERS),
            lines(folder, "test", 0),
            processor=load_checkpoint(folder)[1],
            calibration=lines(folder, "calibration", 6),
            resume=kept,
            **{**FAST, **options},
        )
    return json.dumps(result.to_dict()).encode(), count


def test_any_number_of_processes_gives_the_same_bytes(folder: Path) -> None:
    """All processes return them, and each has answered a part of the questions."""
    alone, answered = evaluated(0, folder, None, METHODS)
    assert b'"splits"' in alone
    for count in (2, 3):
        results = several(evaluated, count, folder, None, METHODS)
        assert {result for result, _ in results} == {alone}
        assert sum(batches for _, batches in results) == answered
        assert all(batches for _, batches in results)


def killed(rank: int, folder: Path, kept: Path) -> str:
    """One of two processes ends without a word at its fourth batch; what the other one says."""
    if rank == 1:
        evaluating.greedy = ends_at(4, evaluating.greedy)  # in a process of its own
    try:
        evaluated(rank, folder, kept, QUICK)
    except OpSkipError as error:
        return str(error)
    return "no error"


def test_any_number_of_processes_goes_on_after_a_killed_one(folder: Path, tmp_path: Path) -> None:
    want, batches = evaluated(0, folder, None, QUICK)
    (said,) = several(killed, 2, folder, tmp_path / "kept", dies=1)
    assert said.startswith("another process has ended or does not answer: ")
    files = [tmp_path / "kept" / name for name in ("answers.jsonl", "answers.jsonl.1")]
    first, second = (file.read_text().count('"key"') for file in files)
    assert second >= 3 and first >= 4  # of their own; that of the others each may not have known yet
    with open(files[1], "a") as torn:
        torn.write('{"key": "torn')
    for count in (1, 2, 3):
        kept = tmp_path / f"with {count}"
        shutil.copytree(tmp_path / "kept", kept)
        results = several(evaluated, count, folder, kept, QUICK)
        assert {result for result, _ in results} == {want}
        assert sum(done for _, done in results) <= batches - 7


def failing(rank: int, folder: Path) -> tuple[str, list[str]]:
    def refuses(*args: Any) -> Any:
        if rank == 1:
            raise ValueError("no memory")
        return [[9]] * 2

    evaluating.greedy = refuses
    try:
        evaluated(rank, folder, None, {"methods": ("late",)})
    except Exception as error:
        return f"{type(error).__name__}: {error}", getattr(error, "__notes__", [])
    return "no error", []


def test_what_fails_in_one_process_is_raised_in_all(folder: Path) -> None:
    """At once, with the question; the one in which it failed raises what it was."""
    notes = ["it happened with test, line 4, test, line 5"]
    said = several(failing, 3, folder, patience=60)
    assert said[1] == ("ValueError: no memory", notes)
    assert {text for text, _ in said[::2]} == {f"_ToldError: process 1: ValueError: no memory; {notes[0]}"}


def unlike(rank: int, folder: Path) -> str:
    try:
        evaluated(rank, folder, None, {"methods": ("late",), "cuts": (0.4 + 0.1 * rank,)})
    except OpSkipError as error:
        return str(error)
    return "no error"


def test_processes_that_were_asked_for_different_things(folder: Path) -> None:
    said = "cuts: process 0 has '(0.4,)' and process 1 '(0.5,)'; processes that share the work need the same"
    assert several(unlike, 2, folder) == [said] * 2


def timed(rank: int, folder: Path) -> tuple[list[Any], list[str]]:
    """Only the first process has a clock."""

    def speeds(model: Any, runs: Any, *args: Any) -> Any:
        assert rank == 0
        return {run.spec: evaluating.timing.Speed(2.0, 1.0, 3.0, 2.5) for run in runs[1:]}

    evaluating.timing.speeds = speeds
    result = json.loads(evaluated(rank, folder, None, {"methods": ("late",), "rounds": 1})[0])
    return [outcome["speedup"] for outcome in result["outcomes"]], result["missing"]


def test_the_first_process_times_the_prefill(folder: Path) -> None:
    first, second = several(timed, 2, folder)
    assert first == second == ([None, {"measured": 2.0, "low": 1.0, "high": 3.0, "ideal": 2.5}], [])


def commanded(rank: int, data: Path, out: Path, *more: str) -> tuple[int, str, str]:
    model = data.parent
    options = ("--eager", "--rounds", "0", "--resamples", "50", "--answer-tokens", "2", "--schedule", "attend:1")
    ran = call("eval", "--model", model, "--data", data, *options, "--out", out, *more)
    assert distributed.is_initialized()
    return ran.exit_code, ran.stdout, ran.stderr


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    entries = [
        {"image": Path(line.images[0]).name, "prompt": line.prompt, "answer": "word9"}
        for line in lines(folder, "test", 0)
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return folder / "data.jsonl"


def test_one_process_speaks_and_writes(data: Path, tmp_path: Path) -> None:
    """And writes the bytes that it writes alone."""
    out = tmp_path / "out.json"
    (alone,) = several(commanded, 1, data, out)
    written = out.read_bytes()
    out.unlink()
    assert alone[0] == 0, alone
    assert several(commanded, 2, data, out) == [alone, (0, "", "")]
    assert out.read_bytes() == written


def test_bad_input_is_one_line_of_one_process(data: Path, tmp_path: Path) -> None:
    (first, second) = several(commanded, 2, data, tmp_path / "gone" / "out.json")
    assert first[:2] == (2, "")
    assert first[2].startswith("opskip: out: there is no folder ") and first[2].count("\n") == 1
    assert second == (2, "", "")
    unanswered = data.with_name("unanswered.jsonl")
    entries = [json.loads(line) for line in data.read_text().splitlines()]
    unanswered.write_text("\n".join(json.dumps({**entry, "answer": None}) for entry in entries))
    assert several(commanded, 2, unanswered, tmp_path / "out.json") == [
        (2, "", "opskip: unanswered.jsonl, line 1: answer: needed to tell what is right\n"),
        (2, "", ""),
    ]
