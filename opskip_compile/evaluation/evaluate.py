"""`evaluate`: the answers of a model to questions whose answers are known, dense and with as many FLOPs saved in
several ways."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from opskip_compile.calibration import costs as costing
from opskip_compile.calibration import processes
from opskip_compile.calibration.calibrate import calibrate
from opskip_compile.calibration.config import CalibrationConfig
from opskip_compile.calibration.files import FileSamples
from opskip_compile.calibration.fingerprint import fingerprint, versions
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.option_checks import configured, shared_options
from opskip_compile.calibration.preparation import dense
from opskip_compile.errors import OpSkipError
from opskip_compile.evaluation import speed as timing
from opskip_compile.evaluation.config import EvaluationConfig, EvaluationOptions
from opskip_compile.evaluation.data import MethodOutcome, outcome_of
from opskip_compile.evaluation.measures import TaskRows, is_right
from opskip_compile.evaluation.methods import CALIBRATED, COMBINED, PARTS
from opskip_compile.evaluation.questions import checked_lines, task_rows
from opskip_compile.evaluation.result import Evaluation
from opskip_compile.evaluation.running import running
from opskip_compile.evaluation.runs import EvaluationRun, EvaluationSetup, all_runs, check_reach, out_of_reach
from opskip_compile.evaluation.splits import best_split
from opskip_compile.models.generation import greedy
from opskip_compile.models.jsonl import Line
from opskip_compile.models.oracle import decoder_layers
from opskip_compile.models.prompts import Encoder
from opskip_compile.output.progress import Step
from opskip_compile.passes.levels import taken
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.modalities import VISUAL
from opskip_compile.schedule.schedule import Schedule

QuestionSource = str | os.PathLike[str] | Sequence[Line] | Sequence[str | os.PathLike[str]]


def evaluate(
    model: nn.Module,
    data: QuestionSource,
    *,
    processor: Any,
    calibration: QuestionSource | None = None,
    schedules: Mapping[str, Schedule | str] | None = None,
    config: EvaluationConfig | None = None,
    step: Step = lambda what, done, total: None,
    **options: Unpack[EvaluationOptions],
) -> Evaluation:
    """Ask a model questions, dense and in other ways, and say what of its accuracy is retained at what cut.

    Every run answers every question greedily. Dense and skipped prompts run the same compiled path; decode steps,
    which are the same for all of them, and token dropping run eagerly. An answer is right if it is one of the line's
    answers, but for case, blanks and a full stop at the end.

    Args:
        model: of transformers, with a config that names its image token, or with ``modalities="audio"`` its audio
            token, on its device and in its dtype.
        data: JSONL files (or one, or its lines) with ``image``, ``images`` or ``audio``, ``prompt``, ``answer`` (a text
            or a list of texts) and perhaps ``task`` on each line; without ``task`` a file is a task.
        processor: of transformers, or an `Encoder`.
        calibration: the same for what the methods of `CALIBRATED` calibrate on; answers are not used. No prompt of it
            may be in ``data``.
        schedules: by name, to take part as they are.
        config: how to evaluate; the defaults of `EvaluationConfig` if not given.
        step: called with what is done now, steps done, and steps in all.
        options: fields of `EvaluationConfig` by name, such as ``cuts=(0.3,)``. They take the place of the config's.

    Returns:
        The figures with their intervals. What could not take part is in ``missing``. Under ``torch.distributed`` the
        processes share the questions and the samples of calibrations, every one of them returns the same, and the first
        one times the prefill.

    Raises:
        OptionError: an unknown or bad option. OpSkipError: a bad line (named), a line of ``data`` in ``calibration``,
        or a model whose rows are not known. Both before long work where it can be known then. Where one process fails,
        all of them raise; a process that ends without a word is an OpSkipError in the others.
    """
    with processes.Together():
        config = configured(EvaluationConfig, config, options)
        methods = config.methods_for(calibration is not None, bool(schedules))
        encoder = Encoder.of(processor)
        named_schedules = {name: Schedule.of(schedule) for name, schedule in (schedules or {}).items()}
        lines = checked_lines(data, "data", config.limit, answered=True)
        prompts = None if calibration is None else checked_lines(calibration, "calibration", None, unlike=lines)
        with dense(model), _folder(config.resume) as folder:
            questions = _samples(model, lines, encoder, config, None)
            questions.check(step)
            about = {
                "model": fingerprint(model),
                "data": questions.digest,
                "answer_tokens": config.answer_tokens,
                "lower": config.lower,
                **({} if config.modalities == VISUAL else {"modalities": list(config.modalities)}),
            }
            asked = {"methods": methods, "schedules": {name: s.to_dict() for name, s in named_schedules.items()}}
            processes.check_alike({**shared_options(config), **about, **versions(), **asked})
            setup = _setup(model, questions, step)
            check_reach(setup, methods, config.cuts)
            for name, schedule in named_schedules.items():
                setup.schedule_run(name, schedule)  # one that does not fit is refused before anything is calibrated
            calibrated = _calibrator(model, encoder, prompts or [], config, folder, step)
            combined = _combiner(model, encoder, prompts or [], config, setup, calibrated, folder, step)
            runs = all_runs(setup, methods, config.cuts, named_schedules, config.random_seeds, calibrated, combined)
            rank, _ = processes.rank_and_world_size()
            journal = Journal(folder / "answers.jsonl", {**about, "batch": config.batch, **versions()}, rank)
            try:
                answers = []
                for i, run in enumerate(runs):
                    said, levels = _answers(model, run, questions, config.lower, journal, step)
                    answers.append(said)
                    runs[i] = setup.with_levels(run, levels)
            finally:
                journal.close()
            missing = out_of_reach(runs, methods, config.cuts)
            speeds, untimed = processes.by_first(lambda: _speeds(model, runs, setup, config, step))
            missing += untimed
        tasks = task_rows(lines)
        outcomes = _outcomes(runs, answers, lines, tasks, speeds, config)
        about |= {
            "calibration": None if prompts is None else min(len(prompts), config.calibration_limit or len(prompts)),
            "architecture": type(model).__name__,
            "random_seeds": config.random_seeds,
            "seed": config.seed,
            **versions(),
        }
        counts = {name: (len(rows.places), len(set(rows.groups))) for name, rows in tasks.items()}
        return Evaluation(tuple(outcomes), counts, about, tuple(missing))


def _samples(
    model: nn.Module, lines: Sequence[Line], encoder: Encoder, config: EvaluationConfig, limit: int | None
) -> FileSamples:
    modalities = tuple(config.modalities)
    return FileSamples(model, lines, encoder, config.rows, config.answer_tokens, config.batch, limit, modalities)


def _calibrator(
    model: nn.Module, encoder: Encoder, lines: Sequence[Line], config: EvaluationConfig, folder: Path, step: Step
) -> Callable[[str, float], Schedule]:
    """What gives the schedule of a method of `CALIBRATED` for a cut; all of them share their measurements."""

    def calibrated(method: str, cut: float) -> Schedule:
        samples = _samples(model, lines, encoder, config, config.calibration_limit)
        how = CalibrationConfig(
            budget=cut,
            rows=config.rows,
            modalities=config.modalities,
            search_samples=config.search_samples,
            holdout=0.0,
            seed=config.seed,
            controls=False,
            stability=False,
            whole_front=False,
            resume=folder / "calibration.jsonl",
        )

        def calibration_step(what: str, done: int, total: int) -> None:
            step(f"{method} {cut:.1%}: {what}", done, total)

        return calibrate(model, samples, config=replace(how, **CALIBRATED[method]), step=calibration_step).schedule

    return calibrated


def _combiner(
    model: nn.Module,
    encoder: Encoder,
    lines: Sequence[Line],
    config: EvaluationConfig,
    setup: EvaluationSetup,
    calibrated: Callable[[str, float], Schedule],
    folder: Path,
    step: Step,
) -> Callable[[str, float], EvaluationRun | None]:
    """What gives the run of a method of `COMBINED` for a cut: its best split on the calibration prompts."""

    def combined(method: str, cut: float) -> EvaluationRun | None:
        schedules = [calibrated(COMBINED[method], part * cut) for part in PARTS]
        found = [setup.pruned_run(method, schedule, cut) for schedule in schedules]
        runs = list({run.spec: run for run in found if run is not None}.values())
        if not runs:
            return None
        limit = min(filter(None, (config.calibration_limit, config.search_samples, len(lines))))
        samples = _samples(model, lines, encoder, config, limit)
        samples.check(step)
        about = {"model": fingerprint(model), "data": samples.digest, "answer_tokens": config.answer_tokens}
        rank, _ = processes.rank_and_world_size()
        journal = Journal(folder / "splits.jsonl", {**about, **versions()}, rank)
        try:
            samples.answer(journal, step)
            return best_split(model, samples, runs, journal, step)
        finally:
            journal.close()

    return combined


def _setup(model: nn.Module, questions: FileSamples, step: Step) -> EvaluationSetup:
    step("asking the compiler", 0, 0)
    costs = costing.flops_costs(model, questions, shares=True)
    try:
        geometry = Geometry.from_config(model)
    except OpSkipError:
        geometry = None
    prompts = [prompt for item in questions.items for prompt in item.rows]
    return EvaluationSetup(costs, prompts, geometry, len(decoder_layers(model)), questions.rows, questions.modalities)


def _answers(
    model: nn.Module, run: EvaluationRun, questions: FileSamples, lower: str, journal: Journal, step: Step
) -> tuple[list[str], list[int]]:
    """The answers of one run to all questions, in their order, and the level that each of them took, if it has any."""
    schedule, of_levels = run.schedule, f"levels {run.spec}"
    leveled = schedule is not None and bool(schedule.levels)
    keys, items = [run.spec, *([of_levels] if leveled else [])], range(questions.size())

    def answer(i: int) -> Iterator[tuple[str, Any]]:
        inputs, _, names = questions.prompt(i)
        said = [questions.encoder.text(ids) for ids in greedy(model, inputs, questions.answer_tokens, names)]
        if schedule is not None and leveled:
            yield of_levels, list(taken(schedule.digest))
        yield run.spec, said

    with running(model, run, lower, questions.modalities):
        journal.share(
            [i for i in items if any(journal.get(key, i) is None for key in keys)],
            answer,
            lambda i: questions.items[i].names,
            lambda done, size: step(f"{run.name}: answering", done, size),
        )
    answers = [text for i in items for text in journal.get(run.spec, i)]
    return answers, [level for i in items for level in journal.get(of_levels, i) or ()]


def _speeds(
    model: nn.Module, runs: Sequence[EvaluationRun], setup: EvaluationSetup, config: EvaluationConfig, step: Step
) -> tuple[dict[str, timing.Speed], list[str]]:
    """Prefill times, and why there are none."""
    if not config.rounds:
        return {}, []
    try:
        speeds = timing.speeds(model, runs, setup.prompts, setup.modalities, config.rounds, config.timed, step)
    except OpSkipError as error:
        return {}, [f"prefill times: {error}"]
    return speeds, [f"prefill times: {run.name} is not timed" for run in runs if run.splits]


def _outcomes(
    runs: Sequence[EvaluationRun],
    answers: Sequence[Sequence[str]],
    lines: Sequence[Line],
    tasks: Mapping[str, TaskRows],
    speeds: Mapping[str, timing.Speed],
    config: EvaluationConfig,
) -> list[MethodOutcome]:
    """Runs of one method at one cut together, in the order of their first."""
    right = [[float(is_right(t, line.answers)) for t, line in zip(texts, lines, strict=True)] for texts in answers]
    same = [sum(a == b for a, b in zip(texts, answers[0], strict=True)) / len(lines) for texts in answers]
    groups: dict[tuple[str, float | None], list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault((run.method, run.asked), []).append(i)
    return [
        outcome_of(
            [runs[i] for i in group],
            [right[i] for i in group],
            [same[i] for i in group],
            right[0],
            tasks,
            speeds.get(runs[group[0]].spec),
            config.resamples,
            config.seed,
        )
        for group in groups.values()
    ]


@contextmanager
def _folder(path: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Where measurements are kept: this folder, created if need be, or a temporary one."""
    if path is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OpSkipError(f"resume: {os.fspath(path)!r}: {error.strerror or error}") from error
    yield Path(path)
