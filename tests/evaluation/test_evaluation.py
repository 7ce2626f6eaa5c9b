"""`opskip.evaluate`: accuracies against the oracle's answers, equal FLOPs, intervals, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import opskip_compile as opskip
from opskip_compile.calibration.batches import with_answers
from opskip_compile.errors import OpSkipError, OptionError, ScheduleError
from opskip_compile.evaluation import plots as draw
from opskip_compile.evaluation.measures import TaskRows, bootstrap, is_right, retained
from opskip_compile.evaluation.pruning import pruning_tokens
from opskip_compile.evaluation.result_tables import outcome_table
from opskip_compile.models.checkpoint import load_checkpoint
from opskip_compile.models.generation import greedy
from opskip_compile.models.jsonl import Line, encode
from opskip_compile.models.prompts import Encoder
from opskip_compile.schedule.flops import layers_scored
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.families import IMAGE
from tests.helpers.planted import deaf_after

evaluating = import_module("opskip_compile.evaluation.evaluate")
SPEC = "attend:1"  # changes some answers, not all
TOKENS = 3
FAST: dict[str, Any] = {"lower": "eager", "rounds": 0, "answer_tokens": TOKENS, "batch": 6, "resamples": 200}
TOKEN_METHODS = ("fastv", "random-tokens", "divprune", "pruned+operators", "pruned+operators+keep")
METHODS = ("per-prompt", "operators+keep", "operators", "dop", "shortv", "vtw", *TOKEN_METHODS, "random", "late")


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model() -> Any:
    """Of five layers the attentions of the last two read nothing."""
    return deaf_after(3)[0].eval()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(load_checkpoint(make_checkpoint(tmp_path_factory.mktemp("processor")))[1])


def asked(folder: Path, split: str) -> list[Line]:
    """Twelve questions about six pictures, of two tasks; not answered yet."""
    drawn = torch.Generator().manual_seed(len(split))
    for i in range(6):
        pixels = torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8, generator=drawn)
        Image.fromarray(pixels.numpy()).save(folder / f"{split}{i}.png")
    prompts = ("what is this", "is this what what")
    return [
        Line(f"{split}, line {i}", (folder / f"{split}{i // 2}.png",), prompts[i % 2], (), ("plain", "odd")[i % 4 // 2])
        for i in range(12)
    ]


@pytest.fixture(scope="module")
def questions(model: Any, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    """Three quarters of the answers are those of the eager dense model, a quarter are wrong."""
    lines = asked(tmp_path_factory.mktemp("data"), "test")
    answers = eager_answers(model, encoder, lines)
    return [replace(q, answers=("never",) if i % 4 == 3 else ("no", answers[i].upper())) for i, q in enumerate(lines)]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    return asked(tmp_path_factory.mktemp("calibration"), "calibration")


@pytest.fixture(scope="module")
def result(model: Any, encoder: Encoder, questions: list[Line], prompts: list[Line]) -> opskip.Evaluation:
    torch._dynamo.reset()
    return opskip.evaluate(
        model,
        questions,
        processor=encoder,
        calibration=prompts,
        schedules={"mine": SPEC},
        methods=METHODS,
        cuts=(0.4,),
        random_seeds=2,
        **FAST,
    )


def eager_answers(model: Any, encoder: Encoder, lines: list[Line], spec: str = "none") -> list[str]:
    """By the oracle's definition, one prompt at a time."""
    answers = []
    for line in lines:
        inputs = encode([line], encoder)
        with opskip.oracle(model, opskip.Schedule.from_spec(spec), inputs["input_ids"] == IMAGE):
            (tokens,) = greedy(model, inputs, TOKENS, ("x",))
        answers.append(encoder.text(tokens))
    return answers


def test_answers_are_the_oracles(
    result: opskip.Evaluation, model: Any, encoder: Encoder, questions: list[Line]
) -> None:
    """Accuracy by task and agreement, counted from the answers of the oracle's definition."""
    dense, skipped = (eager_answers(model, encoder, questions, spec) for spec in ("none", SPEC))
    same = [a == b for a, b in zip(dense, skipped, strict=True)]
    right = [s and i % 4 != 3 for i, s in enumerate(same)]
    for task in ("plain", "odd"):
        of_task = [r for r, q in zip(right, questions, strict=True) if q.task == task]
        assert result.of("mine").by_task[task] == pytest.approx(sum(of_task) / 6)
    assert result.of("mine").agreement == pytest.approx(sum(same) / 12)
    assert 0 < sum(same) < 12  # else the test can't tell
    assert result.dense.by_task == {"plain": 1.0, "odd": 0.5}
    assert result.dense.agreement == result.dense.retained == 1


def test_cuts_are_at_least_what_was_asked_for(result: opskip.Evaluation, model: Any) -> None:
    """And no more than one unit of the method over it; FLOPs are those of the formula."""
    for method in METHODS:
        outcome = result.of(method, 0.4)
        if method != "per-prompt":  # there the cut is a mean over prompts, guessed on others
            assert all(run.cut >= 0.4 for run in outcome.runs), method
        assert outcome.cut < 0.4 + (0.05 if method in TOKEN_METHODS else 0.17), method
    counts = [opskip.count_flops(model, visual_tokens=16, text_tokens=n, schedule=SPEC) for n in (3, 4)]
    cut = 1 - sum(c.skipped for c in counts) / sum(c.dense for c in counts)
    assert result.of("mine").cut == pytest.approx(cut)
    assert [run.seed for run in result.of("random", 0.4).runs] == [0, 1]
    (shortv,) = result.of("shortv", 0.4).runs
    assert shortv.schedule is not None
    assert {states.state for states in shortv.schedule.resolve(5)} == {"full", "silent"}


def test_the_cut_of_levels_is_that_of_the_prompts(result: opskip.Evaluation, model: Any) -> None:
    """Each question counts with the level that it took, by the formula; scores are paid at every level."""
    outcome = result.of("per-prompt", 0.4)
    (run,) = outcome.runs
    assert run.schedule is not None
    assert sum(run.levels) == 12
    sizes = opskip.Geometry.from_config(model)

    def scores(states: Any, text: int) -> int:
        asked = [states[i].attention is not None for i in range(layers_scored(states))]
        return sum(sizes.scores(text, 16 + text, queries=queries) for queries in asked)

    together, saved = run.schedule.resolve(5), 0.0
    for count, level in zip(run.levels, run.schedule.levels, strict=True):
        dense = left = 0
        for text in (3, 4):
            counted = opskip.count_flops(model, visual_tokens=16, text_tokens=text, schedule=level)
            dense += counted.dense
            left += counted.skipped - scores(level.resolve(5), text) + scores(together, text)
        saved += count / 12 * (1 - left / dense)
    assert run.cut == pytest.approx(saved)
    assert outcome.to_dict()["runs"][0]["levels"] == list(run.levels)
    assert run.schedule.digest in outcome.to_dict()["runs"][0]["spec"]


@pytest.mark.parametrize("method", ["pruned+operators", "pruned+operators+keep"])
def test_a_combined_run_is_counted_and_chosen_on_the_calibration_prompts(
    method: str, result: opskip.Evaluation, model: Any, encoder: Encoder, prompts: list[Line]
) -> None:
    """FLOPs of the shorter prompts beside those of the full ones, and the least divergence of the splits."""
    (run,) = result.of(method, 0.4).runs
    assert run.schedule is not None and run.dropping is not None
    kept, dense, left = run.dropping.kept(16), 0, 0
    for text in (3, 4):
        dense += opskip.count_flops(model, visual_tokens=16, text_tokens=text).dense
        left += opskip.count_flops(model, visual_tokens=kept, text_tokens=text, schedule=run.schedule).skipped
    assert run.cut == pytest.approx(1 - left / dense)
    assert 0 < kept < 16
    assert {split.spec for split in run.splits} > {run.spec}
    assert all(0.4 <= split.cut < 0.45 for split in run.splits)
    chosen = next(split for split in run.splits if split.spec == run.spec)
    assert chosen.divergence == min(split.divergence for split in run.splits)
    ids = [greedy(model, encode([line], encoder), TOKENS, ("x",))[0] for line in prompts]
    found = []
    for line, answer in zip(prompts, ids, strict=True):
        inputs = encode([line], encoder)
        longer, rows = with_answers(inputs, [answer], 0)
        with pruning_tokens(model, run.dropping), torch.no_grad():
            opskip.compile(model, run.schedule, prefill_only=True, options={"lower": "eager"})
            first = model(**inputs).logits[0, -1]
            opskip.remove(model)
        found.append(int(first.argmax()) == answer[0])
        assert rows[0].sum() == len(answer) and longer["input_ids"].shape[1] > inputs["input_ids"].shape[1]
    assert chosen.agreement <= sum(found) / len(found)
    plain = result.of(method, 0.4).to_dict()["runs"][0]
    assert [split["spec"] for split in plain["splits"]] == [split.spec for split in run.splits]
    assert plain["spec"].startswith(f"{run.dropping.share!r} of the visual rows leave before layer 0, diverse 0; then ")


def test_a_schedule_for_other_rows_is_counted_with_them(
    model: Any, encoder: Encoder, questions: list[Line], prompts: list[Line]
) -> None:
    """Rows before the image count where a schedule leaves them out too."""
    evaluation = opskip.evaluate(
        model,
        [replace(q, prompt=f"this {q.prompt}") for q in questions[:1]],
        processor=Before(encoder.processor),
        schedules={"visual": SPEC, "through": "attend@through_visual:1", "share": "silent@keep=0.25:1"},
        **FAST,
    )
    for name, before in (("visual", 0), ("through", 2), ("share", 0)):
        rows = opskip.count_flops(
            model, visual_tokens=16, text_tokens=6, text_before=2, schedule=evaluation.of(name).runs[0].schedule
        )
        assert evaluation.of(name).cut == pytest.approx(rows.cut), before
    assert evaluation.of("through").cut > evaluation.of("visual").cut


class Before(Encoder):
    """Two words before the image."""

    def prompts(self, images: Any, texts: Any) -> dict[str, torch.Tensor]:
        inputs = super().prompts(images, texts)
        head = torch.tensor([[3, 4]]).expand(len(texts), -1)
        return {
            **inputs,
            "input_ids": torch.cat([head, inputs["input_ids"]], 1),
            "attention_mask": torch.cat([torch.ones_like(head), inputs["attention_mask"]], 1),
        }


def test_unread_operators_are_found(result: opskip.Evaluation) -> None:
    """What can be left out for free is, and no other way that was measured keeps more."""
    ours = result.of("operators", 0.4)
    assert ours.retained == ours.agreement == result.of("operators+keep", 0.4).retained == 1
    (run,) = ours.runs
    assert run.schedule is not None
    assert all(states.state == "full" for states in run.schedule.resolve(5)[:2])
    assert result.of("random", 0.4).accuracy < ours.accuracy


def test_random_runs_are_reported_by_their_mean(result: opskip.Evaluation) -> None:
    outcome = result.of("random", 0.4)
    assert outcome.worst is not None and outcome.best is not None and outcome.retained is not None
    assert outcome.worst <= outcome.retained <= outcome.best
    assert outcome.retained == pytest.approx((outcome.worst + outcome.best) / 2)


def test_tables_json_and_plot(result: opskip.Evaluation, tmp_path: Path) -> None:
    plain = json.loads(json.dumps(result.to_dict()))
    assert [o["method"] for o in plain["outcomes"]][:2] == ["dense", "mine"]
    assert plain["tasks"] == {name: {"questions": 6, "images": 3} for name in ("plain", "odd")}
    assert outcome_table(result).row_count == len(result.outcomes) == len(METHODS) + 2
    text = result.markdown()
    assert "| accuracy | FLOPs cut | plain | odd |" in text
    assert text.count("| random, mean of 2 |") == 2
    assert "| dense | 0.0% | 100.0% | 50.0% |" in text
    figure = draw.figure(result)
    above, below = figure.axes
    (point,) = (line for line in above.lines if line.get_gid() == "mine")
    assert list(point.get_ydata()) == [pytest.approx(100 * (result.of("mine").retained or 0))]
    bars = {c[0].get_gid(): [bar.get_height() for bar in c] for c in below.containers}
    assert len(below.containers) == len(METHODS) + 1  # all but the schedule that nobody asked to cut so much
    assert bars["tasks-dense"] == [100, 50]
    result.plot(tmp_path / "e.png")
    assert (tmp_path / "e.png").stat().st_size > 10_000


def test_an_interrupted_run_goes_on(
    model: Any, encoder: Encoder, questions: list[Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are there are not asked for again, and the figures are the same."""
    sizes: list[int] = []

    def counting(model: Any, inputs: Any, tokens: int, names: Any) -> Any:
        sizes.append(len(names))
        if len(sizes) == 4:
            raise KeyboardInterrupt
        return greedy(model, inputs, tokens, names)

    def run(lines: list[Line]) -> opskip.Evaluation:
        kept = tmp_path / "kept"
        return opskip.evaluate(model, lines, processor=encoder, methods=("vtw",), cuts=(0.4,), resume=kept, **FAST)

    monkeypatch.setattr(evaluating, "greedy", counting)
    with pytest.raises(KeyboardInterrupt):
        run(questions)
    first = run(questions)
    assert sizes == [6] * 5  # two batches for each of two runs, one of them begun again
    assert run(questions).to_dict() == first.to_dict()
    assert len(sizes) == 5
    with pytest.raises(OpSkipError, match=r"resume: .*answers.jsonl.* was written with data"):
        run(questions[:6])


def test_prefill_is_timed(model: Any, encoder: Encoder, questions: list[Line]) -> None:
    options: dict[str, Any] = {**FAST, "rounds": 1, "timed": "eager"}
    evaluation = opskip.evaluate(
        model, questions[:4], processor=encoder, methods=("vtw", "late"), cuts=(0.4,), **options
    )
    assert not evaluation.missing
    for method in ("vtw", "late"):
        speed = evaluation.of(method, 0.4).speed
        assert speed is not None and speed.measured > 0
        assert speed.ideal == pytest.approx(1 / (1 - evaluation.of(method, 0.4).cut), rel=0.05)
    assert evaluation.dense.speed is None


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"methods": ("best",)}, OptionError, r"methods: expected some of per-prompt, .*, got 'best'"),
        ({"methods": ("operators",)}, OptionError, "calibration: needed by the method 'operators'"),
        ({"cuts": (1.5,)}, OptionError, "cuts: expected shares over 0 and below 1, got 1.5"),
        ({"cuts": (0.95,)}, OptionError, r"cuts: 95.0% can't be met: with all operators skipped [67]\d.\d% are saved"),
        ({"rows": "text"}, OptionError, "rows: expected one of visual, through_visual, got 'text'"),
        ({"limit": 0}, OptionError, "limit: expected an integer of at least 1, got 0"),
        ({"rounds": -1}, OptionError, "rounds: expected an integer of at least 0, got -1"),
        ({"random_seeds": 0}, OptionError, "random_seeds: expected an integer of at least 1, got 0"),
        ({"timed": "fast"}, OptionError, "timed: expected one of inductor, eager, got 'fast'"),
        ({"lower": "fast"}, OptionError, "lower: expected one of inductor, eager, got 'fast'"),
        ({"schedules": {"mine": "silent:9"}}, ScheduleError, r"layer 9"),
        ({"calibration": "data"}, OpSkipError, "test, line 0: the same pictures and prompt are in data too"),
        ({"data": "unanswered"}, OpSkipError, "test, line 0: answer: needed to tell what is right"),
        ({"data": "nothing"}, OpSkipError, "data: there are no lines"),
    ],
)
def test_what_is_refused(
    options: dict[str, Any],
    error: type[Exception],
    said: str,
    model: Any,
    encoder: Encoder,
    questions: list[Line],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before any question is asked."""
    monkeypatch.setattr(evaluating, "greedy", lambda *args: pytest.fail("too late"))
    known = {"data": questions[:3], "unanswered": [replace(questions[0], answers=())], "nothing": []}
    arguments = {k: known.get(v, v) if isinstance(v, str) else v for k, v in {"data": "data", **options}.items()}
    with pytest.raises(error, match=said):
        opskip.evaluate(model, arguments.pop("data"), processor=encoder, **{**FAST, **arguments})


def test_exact_match() -> None:
    assert is_right(" Two  Dogs. ", ("cat", "two dogs"))
    assert not is_right("two dog", ("two dogs",))
    assert not is_right("", ("a",))


def test_retained_is_the_mean_of_the_tasks_shares() -> None:
    assert retained({"a": 0.4, "b": 0.9}, {"a": 0.8, "b": 0.9}) == pytest.approx(0.75)
    assert retained({"a": 0.4, "b": 0.9}, {"a": 0.8, "b": 0.0}) == pytest.approx(0.5)
    assert retained({"a": 0.0}, {"a": 0.0}) is None


def test_intervals_draw_whole_images() -> None:
    """Ten questions about each image that are right or wrong together are worth as many as there are images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, generator=generator) < 0.8
    right = images.repeat_interleave(10).double().tolist()
    dense = [1.0] * 600
    by_image = {"t": TaskRows(tuple(range(600)), tuple(i // 10 for i in range(600)))}
    alone = {"t": TaskRows(tuple(range(600)), tuple(range(600)))}
    wide, narrow = (bootstrap(right, dense, tasks, 2000, 0) for tasks in (by_image, alone))
    assert wide.retained is not None and narrow.retained is not None
    share = float(images.double().mean())
    error = (share * (1 - share) / 60) ** 0.5
    for bound, sign in ((wide.retained.low, -1), (wide.retained.high, 1)):
        assert bound == pytest.approx(share + sign * 1.96 * error, abs=0.25 * error)
    assert (narrow.retained.high - narrow.retained.low) * 3 < wide.retained.high - wide.retained.low + 0.01
    assert bootstrap(right, dense, by_image, 2000, 0) == wide
    assert bootstrap(right, right, by_image, 500, 0).retained == bootstrap(dense, dense, by_image, 500, 0).retained
