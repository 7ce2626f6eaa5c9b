"""Several questions on one cache: what the image's rows hold is what a prompt with that question alone would hold."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import opskip_compile as opskip
from benchmarks.vqa import many_turns
from benchmarks.vqa.evaluate import load_trained
from benchmarks.vqa.exporting import LONGEST_ANSWER
from benchmarks.vqa.many_turns import ASKED, TURNS, Talk, answers, of_turn, table, talks
from opskip_compile.evaluation.dropping import dropping_tokens
from opskip_compile.evaluation.pruning import pruning_tokens
from opskip_compile.evaluation.running import running
from opskip_compile.evaluation.runs import EvaluationRun
from opskip_compile.models.generation import greedy
from opskip_compile.models.images import open_image
from opskip_compile.models.oracle import oracle
from opskip_compile.models.rows import token_mask, visual_tokens
from opskip_compile.timing.dropping import Dropping

SPEC, SHARES = "silent:1-9", "silent@keep=0.1:2-9"  # deep enough to change answers


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Talk]:
    return talks(tmp_path_factory.mktemp("images"), 1)[::2]


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def trained(request: pytest.FixtureRequest) -> Any:
    return load_trained(request.param)


def alone(model: Any, encoder: Any, talk: Talk) -> list[str]:
    """Each question in a prompt of its own."""
    said = []
    for question, _ in talk.asked:
        inputs = encoder.prompts([[open_image(talk.image)]], [question])
        said.append(encoder.text(greedy(model, inputs, LONGEST_ANSWER, ("x",))[0]))
    return said


def told(model: Any, encoder: Any, found: list[Talk]) -> list[list[str]]:
    with torch.no_grad():
        return [answers(model, encoder, talk) for talk in found]


def test_an_image_has_different_questions(found: list[Talk], tmp_path: Path) -> None:
    assert [talk.task for talk in found] == list(ASKED[::2])
    assert all(len({question for question, _ in talk.asked}) == TURNS for talk in found)
    assert found[0].line(1).prompt == found[0].asked[1][0]
    again = talks(tmp_path, 1)
    assert [talk.asked for talk in again[::2]] == [talk.asked for talk in found]
    assert (tmp_path / again[0].image.name).read_bytes() == found[0].image.read_bytes()


def test_the_cache_of_an_image_serves_every_question(trained: Any, found: list[Talk]) -> None:
    """Dense, with whole operators skipped and with tokens pruned, none of which asks the words of the prompt."""
    model, encoder = trained
    dense = told(model, encoder, found)
    assert dense == [alone(model, encoder, talk) for talk in found]
    wanted = [answer for talk in found for _, answer in talk.asked]
    right = [said == answer for said, answer in zip(chain(*dense), wanted, strict=True)]
    assert sum(right) > 0.7 * len(right)
    run = EvaluationRun("mine", None, 0.0, opskip.Schedule.from_spec(SPEC))
    with running(model, run, "eager"):
        skipped = told(model, encoder, found)
    with oracle(model, opskip.Schedule.from_spec(SPEC), lambda named: rows(model, named)):
        assert skipped == [alone(model, encoder, talk) for talk in found]
    assert skipped != dense
    dropping = Dropping(0, 0.9, "diverse")
    with pruning_tokens(model, dropping):
        pruned = told(model, encoder, found)
    with dropping_tokens(model, dropping):
        assert pruned == told(model, encoder, found) == [alone(model, encoder, talk) for talk in found]
    assert pruned not in (dense, skipped)


def rows(model: Any, named: Any) -> Any:
    return token_mask(named.get("input_ids"), visual_tokens(model))


def test_rows_that_the_first_question_chose_are_those_of_the_oracle(found: list[Talk]) -> None:
    model, encoder = load_trained("llava")
    schedule = opskip.Schedule.from_spec(SHARES)
    with running(model, EvaluationRun("mine", None, 0.0, schedule), "eager"):
        skipped = told(model, encoder, found)
    with oracle(model, schedule, lambda named: rows(model, named)):
        assert skipped == told(model, encoder, found)


def test_tokens_that_the_first_question_dropped_stay_away(trained: Any, found: list[Talk]) -> None:
    """The same question once more gets the same answer, and another one need not get that of a prompt of its own."""
    model, encoder = trained
    with dropping_tokens(model, Dropping(2, 0.9)):
        once = [alone(model, encoder, talk) for talk in found]
        same = [replace(talk, asked=talk.asked[:1] * TURNS) for talk in found]
        assert told(model, encoder, same) == [[said[0]] * TURNS for said in once]
        assert told(model, encoder, found) != once


def test_a_turn_is_counted_by_task_and_image() -> None:
    found = [Talk(task, Path(f"{task}{i}"), (("a", "x"), ("b", "y"), ("c", "z"))) for task in "pq" for i in range(4)]
    dense = [["x", "y", "z"]] * 8
    said = [["x", "no", "z"]] * 2 + [["x", "y", "no"]] * 6
    first, second, later = (of_turn(found, dense, said, turns) for turns in ([0], [1], [1, 2]))
    assert first == {"accuracy": 1.0, "retained": 1.0, "retained_interval": [1.0, 1.0]}
    assert second["retained"] == pytest.approx((0.5 + 1) / 2)
    assert later["retained"] == pytest.approx(0.5)
    low, high = second["retained_interval"]
    assert low < 0.75 < high


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Schedules of an evaluation at the cut that is asked for, beside dropped tokens at that cut."""
    known = ((0.5, "operators", "silent:4-9"), (0.5, "vtw", "-"), (0.65, "operators", "silent:2-9"))
    rows = [{"asked": cut, "method": method, "runs": [{"spec": spec}]} for cut, method, spec in known]
    (tmp_path / "table.json").write_text(json.dumps({"outcomes": rows}), encoding="utf-8")
    asked = [*"--model llava --images 1 --dropped vtw --cut 0.5 --table".split(), str(tmp_path / "table.json")]
    many_turns.main([*asked, "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    content = json.loads((tmp_path / "vqa_turns_llava.json").read_text(encoding="utf-8"))
    found = [(outcome["method"], outcome["asked"], outcome["spec"]) for outcome in content["outcomes"]]
    assert found[:2] == [("dense", None, "none"), ("operators", 0.5, "silent:4-9")]
    assert found[2][:2] == ("vtw", 0.5) and len(found) == 3
    assert all(0.5 <= outcome["flops_cut"] < 0.6 for outcome in content["outcomes"][1:])
    assert all(len(outcome["turns"]) == TURNS for outcome in content["outcomes"])
    assert content["outcomes"][0]["later"]["retained"] == 1
    text = (tmp_path / "vqa_turns_llava.md").read_text(encoding="utf-8")
    assert text == table(content) + "\n"
    assert "| dense | 0.0% | 100.0% (100.0% - 100.0%) |" in text
    assert text in capsys.readouterr().out
