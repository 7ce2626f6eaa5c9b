"""What an evaluation is asked to do, checked before it starts: methods, cuts, and the lines of its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.evaluation.contenders import CALIBRATED, METHODS, PLAIN, Contender, Field
from opskip_compile.evaluation.measures import TaskRows
from opskip_compile.models.jsonl import Line, read_lines, spread

LOWERINGS = ("inductor", "eager")


@dataclass(frozen=True)
class Plan:
    """Which methods at which cuts."""

    methods: tuple[str, ...]
    cuts: tuple[float, ...]

    @classmethod
    def of(
        cls,
        methods: Sequence[str] | None,
        cuts: Sequence[float],
        can_calibrate: bool,
        has_schedules: bool,
        random_seeds: int,
        rounds: int,
        resamples: int,
        lower: str,
        timed: str,
    ) -> Plan:
        """The plan with its defaults.

        Raises:
            OptionError: names what is wrong.
        """
        if methods is None:
            methods = () if has_schedules else METHODS if can_calibrate else PLAIN
        for method in methods:
            if method not in METHODS:
                raise OptionError(f"methods: expected some of {', '.join(METHODS)}, got {method!r}")
            if method in CALIBRATED and not can_calibrate:
                raise OptionError(f"calibration: needed by the method {method!r}: a file of prompts that data lacks")
        for cut in cuts:
            if isinstance(cut, bool) or not isinstance(cut, int | float) or not 0 < cut < 1:
                raise OptionError(f"cuts: expected shares over 0 and below 1, got {cut!r}")
        counts = (("random_seeds", random_seeds, 1), ("rounds", rounds, 0), ("resamples", resamples, 1))
        for name, number, least in counts:
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise OptionError(f"{name}: expected an integer of at least {least}, got {number!r}")
        for name, how in (("lower", lower), ("timed", timed)):
            if how not in LOWERINGS:
                raise OptionError(f"{name}: expected one of {', '.join(LOWERINGS)}, got {how!r}")
        return cls(tuple(dict.fromkeys(methods)), tuple(sorted({float(cut) for cut in cuts})))

    def check_reach(self, field: Field) -> None:
        """See that the cuts can be made.

        Raises:
            OptionError: not even with everything skipped.
        """
        most = field.own_costs.cut(field.candidates)
        for cut in self.cuts if self.methods else ():
            if cut > most:
                raise OptionError(f"cuts: {cut:.1%} can't be met: with all operators skipped {most:.1%} are saved")

    def missing(self, runs: Sequence[Contender]) -> list[str]:
        """Methods that can't reach a cut."""
        there = {(run.method, run.asked) for run in runs}
        return [
            f"{method} {cut:.1%}: it can't save so much"
            for cut in self.cuts
            for method in self.methods
            if (method, cut) not in there
        ]


def checked_lines(
    source: Any, field: str, limit: int | None, *, answered: bool = False, unlike: Sequence[Line] = ()
) -> list[Line]:
    """The lines of one or several files, each task's together.

    Args:
        source: a path, paths, or lines.
        field: what the messages call it.
        limit: lines at most for each task, evenly spread.
        answered: every line has to have an answer.
        unlike: lines that may not be among them: same pictures, same prompt.

    Raises:
        OpSkipError: names the line.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise OptionError(f"limit: expected an integer of at least 1, got {limit!r}")
    parts = [source] if isinstance(source, str | os.PathLike) else list(source)
    lines = [line for part in parts for line in ([part] if isinstance(part, Line) else read_lines(part))]
    if not lines:
        raise OpSkipError(f"{field}: there are no lines")
    known = {_content(line) for line in unlike}
    for line in lines:
        if answered and not line.answers:
            raise OpSkipError(f"{line.name}: answer: needed to tell what is right")
        if known and _content(line) in known:
            raise OpSkipError(f"{line.name}: the same pictures and prompt are in data too")
    tasks: dict[str, list[Line]] = {}
    for line in lines:
        tasks.setdefault(line.task, []).append(line)
    return [line for own in tasks.values() for line in spread(own, limit)]


def _content(line: Line) -> bytes:
    found = hashlib.sha256(line.prompt.encode())
    for path in line.images:
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.digest()


def task_rows(lines: Sequence[Line]) -> dict[str, TaskRows]:
    """Places of each task's lines, and which of them are about the same pictures."""
    places: dict[str, list[int]] = {}
    for i, line in enumerate(lines):
        places.setdefault(line.task, []).append(i)
    found = {}
    for task, own in places.items():
        numbers: dict[Any, int] = {}
        groups = tuple(numbers.setdefault(lines[i].images, len(numbers)) for i in own)
        found[task] = TaskRows(tuple(own), groups)
    return found
