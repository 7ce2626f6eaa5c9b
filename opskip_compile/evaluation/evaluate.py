"""`evaluate`: the answers of a model to questions whose answers are known, dense and with as many FLOPs saved in
several ways."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opskip_compile.api import compile as compile_model
from opskip_compile.api import decompiled, remove
from opskip_compile.calibration import costs as costing
from opskip_compile.calibration.calibrate import calibrate, evaluating
from opskip_compile.calibration.files import FileSamples
from opskip_compile.calibration.fingerprint import fingerprint, versions
from opskip_compile.calibration.journal import Journal
from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.evaluation import speed as timing
from opskip_compile.evaluation.contenders import CALIBRATED, Contender, Field, line_up
from opskip_compile.evaluation.dropping import dropping_tokens
from opskip_compile.evaluation.measures import TaskRows, is_right
from opskip_compile.evaluation.plan import Plan, checked_lines, task_rows
from opskip_compile.evaluation.result import Evaluation, Outcome, outcome
from opskip_compile.models.generation import greedy
from opskip_compile.models.jsonl import Line
from opskip_compile.models.oracle import decoder_layers
from opskip_compile.models.prompts import Encoder
from opskip_compile.output.progress import Step
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.schedule import ROWS, Rows, Schedule

CUTS = (0.2, 0.337, 0.5, 0.65)
Source = str | os.PathLike[str] | Sequence[Line]


def evaluate(
    model: nn.Module,
    data: Source | Sequence[str | os.PathLike[str]],
    *,
    processor: Any,
    calibration: Source | Sequence[str | os.PathLike[str]] | None = None,
    schedules: Mapping[str, Schedule | str] | None = None,
    methods: Sequence[str] | None = None,
    cuts: Sequence[float] = CUTS,
    rows: Rows = "visual",
    random_seeds: int = 3,
    limit: int | None = None,
    calibration_limit: int | None = 64,
    batch: int = 1,
    answer_tokens: int = 16,
    lower: str = "inductor",
    rounds: int = 5,
    timed: str = "inductor",
    resamples: int = 2000,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    step: Step = lambda what, done, total: None,
) -> Evaluation:
    """Ask a model questions, dense and in other ways, and say what of its accuracy is retained at what cut.

    Every contender answers every question greedily. Dense and skipped prompts run the same compiled path; decode steps,
    which are the same for all of them, and token dropping run eagerly. An answer is right if it is one of the line's
    answers, but for case, blanks and a full stop at the end.

    Args:
        model: of transformers, with a config that names its image token, on its device and in its dtype.
        data: JSONL files (or one, or its lines) with ``image`` or ``images``, ``prompt``, ``answer`` (a text or a list
            of texts) and perhaps ``task`` on each line; without ``task`` a file is a task.
        processor: of transformers, or an `Encoder`.
        calibration: the same for what the methods of `CALIBRATED` calibrate on; answers are not used. No prompt of it
            may be in ``data``.
        schedules: by name, to take part as they are.
        methods: of `METHODS`. If not given: all of them; without ``calibration`` those that need none; none with
            ``schedules``.
        cuts: shares of the prefill FLOPs that each method is asked to save.
        rows: the row set that schedules of the methods leave out.
        random_seeds: runs of the method ``random``, of which the mean is reported.
        limit, calibration_limit: questions at most for each task, and prompts at most in all, evenly spread.
        batch: prompts to a forward pass.
        answer_tokens: of an answer, at most.
        lower: ``"inductor"``, or ``"eager"`` to answer by the rewritten graphs as they are: the same rows left out,
            quicker for small models.
        rounds: of timing the prefill; 0 for no timing.
        timed: how the timed prefill is lowered; with ``"eager"`` the times are no measure.
        resamples: of the bootstrap.
        seed: of the bootstrap and the calibrations.
        resume: a folder that keeps answers and measurements; an interrupted evaluation goes on with them.
        step: called with what is done now, steps done, and steps in all.

    Returns:
        The figures with their intervals. What could not take part is in ``missing``.

    Raises:
        OptionError: a bad option. OpSkipError: a bad line (named), a line of ``data`` in ``calibration``, or a model
        whose rows are not known. Both before long work where it can be known then.
    """
    plan = Plan.of(
        methods, cuts, calibration is not None, bool(schedules), random_seeds, rounds, resamples, lower, timed
    )
    encoder, given = Encoder.of(processor), [(k, Schedule.of(v)) for k, v in (schedules or {}).items()]
    lines = checked_lines(data, "data", limit, answered=True)
    learned = None if calibration is None else checked_lines(calibration, "calibration", None, unlike=lines)
    if rows not in ROWS:
        raise OptionError(f"rows: expected one of {', '.join(ROWS)}, got {rows!r}")
    with decompiled(model), evaluating(model), torch.no_grad(), _folder(resume) as folder:
        asked = FileSamples(model, lines, encoder, rows, answer_tokens, batch)
        asked.check(step)
        field = _field(model, asked, step)
        plan.check_reach(field)
        for name, schedule in given:
            field.given(name, schedule)

        def calibrated(method: str, cut: float) -> Schedule:
            assert learned is not None
            level, search = CALIBRATED[method]
            prompts = FileSamples(model, learned, encoder, rows, answer_tokens, batch, calibration_limit)
            found = calibrate(
                model,
                prompts,
                cut,
                level=level,
                search=search,
                rows=rows,
                holdout=0.0,
                seed=seed,
                controls=False,
                stability=False,
                whole_front=False,
                resume=folder / "calibration.jsonl",
                step=lambda what, done, total: step(f"{method} {cut:.1%}: {what}", done, total),
            )
            return found.schedule

        runs = line_up(field, plan.methods, plan.cuts, given, random_seeds, calibrated)
        about = {"model": fingerprint(model), "data": asked.digest, "answer_tokens": answer_tokens, "lower": lower}
        journal = Journal(folder / "answers.jsonl", {**about, "batch": batch, **versions()})
        try:
            answers = [_answers(model, run, asked, lower, journal, step) for run in runs]
        finally:
            journal.close()
        missing = plan.missing(runs)
        speeds: dict[str, timing.Speed] = {}
        if rounds:
            try:
                speeds = timing.speeds(model, runs, field.prompts, rounds, timed, step)
            except OpSkipError as error:
                missing.append(f"prefill times: {error}")
    tasks = task_rows(lines)
    outcomes = _outcomes(runs, answers, lines, tasks, speeds, resamples, seed)
    about |= {"calibration": None if learned is None else min(len(learned), calibration_limit or len(learned))}
    about |= {"architecture": type(model).__name__, "random_seeds": random_seeds, "seed": seed, **versions()}
    counts = {name: (len(rows_.places), len(set(rows_.groups))) for name, rows_ in tasks.items()}
    return Evaluation(tuple(outcomes), counts, about, tuple(missing))


def _field(model: nn.Module, asked: FileSamples, step: Step) -> Field:
    step("asking the compiler", 0, 0)
    report = costing.compiled_report(model, asked)
    found = {kind: costing.flops_costs(model, asked, report, kind) for kind in ROWS}
    try:
        geometry = Geometry.from_config(model)
    except OpSkipError:
        geometry = None
    prompts = [prompt for item in asked.items for prompt in item.rows]
    candidates = found[asked.rows][1]
    costs: Any = {kind: costs for kind, (costs, _) in found.items()}
    return Field(costs, candidates, prompts, geometry, len(decoder_layers(model)), asked.rows)


def _answers(
    model: nn.Module, run: Contender, asked: FileSamples, lower: str, journal: Journal, step: Step
) -> list[str]:
    """One contender's answers to all questions, in their order."""
    found: list[str] = []
    with _running(model, run, lower):
        for i in range(asked.size()):
            step(f"{run.name}: answering", i, asked.size())
            known = journal.get(run.spec, i)
            if known is None:
                inputs, _, names = asked.prompt(i)
                known = [asked.encoder.text(ids) for ids in greedy(model, inputs, asked.answer_tokens, names)]
                journal.put(run.spec, i, known)
            found += known
    return found


@contextmanager
def _running(model: nn.Module, run: Contender, lower: str) -> Iterator[None]:
    """The model as one contender."""
    if run.dropping is not None:
        with dropping_tokens(model, run.dropping):
            yield
        return
    compile_model(model, run.schedule, prefill_only=True, options={"lower": lower})
    try:
        yield
    finally:
        remove(model)


def _outcomes(
    runs: Sequence[Contender],
    answers: Sequence[Sequence[str]],
    lines: Sequence[Line],
    tasks: Mapping[str, TaskRows],
    speeds: Mapping[str, timing.Speed],
    resamples: int,
    seed: int,
) -> list[Outcome]:
    """Runs of one method at one cut together, in the order of their first."""
    right = [[float(is_right(t, line.answers)) for t, line in zip(own, lines, strict=True)] for own in answers]
    same = [sum(a == b for a, b in zip(own, answers[0], strict=True)) / len(lines) for own in answers]
    groups: dict[tuple[str, float | None], list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault((run.method, run.asked), []).append(i)
    return [
        outcome(
            [runs[i] for i in group],
            [right[i] for i in group],
            [same[i] for i in group],
            right[0],
            tasks,
            speeds.get(runs[group[0]].spec),
            resamples,
            seed,
        )
        for group in groups.values()
    ]


@contextmanager
def _folder(path: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Where measurements are kept: the folder that was given, made if need be, or one for a while."""
    if path is None:
        with tempfile.TemporaryDirectory() as made:
            yield Path(made)
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OpSkipError(f"resume: {os.fspath(path)!r}: {error.strerror or error}") from error
    yield Path(path)
