"""What the tests did in the three runs, read from the lines that the plug-in wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.transformers_suite.selection import RUNS


@dataclass(frozen=True)
class Outcome:
    """One test in one run.

    Attributes:
        outcome: ``passed``, ``failed``, ``skipped`` (by itself, or failed as it was expected to), or ``crashed``: it
            ended the process.
        why: the message of a failure or of a skip.
        compiled: how many models of the test were compiled.
        graphs: how many graphs came to the backend.
        skipped: how many of them skip the rows of a prompt.
        reasons: why the others do not.
        cpu: seconds of the processor.
    """

    outcome: str
    why: str = ""
    compiled: int = 0
    graphs: int = 0
    skipped: int = 0
    reasons: tuple[str, ...] = ()
    cpu: float = 0.0

    @property
    def ran(self) -> bool:
        """False if the test skipped itself."""
        return self.outcome != "skipped"

    @staticmethod
    def of(fields: Mapping[str, Any]) -> Outcome:
        """From plain data."""
        return Outcome(**{**fields, "reasons": tuple(fields.get("reasons", ()))})


Suite = dict[str, dict[str, Outcome]]
"""test -> run -> outcome"""


def read_lines(path: Path) -> dict[str, Outcome]:
    """The tests of one file. A test that began and did not end crashed."""
    outcomes: dict[str, Outcome] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        name = fields.pop("test", None)
        if name is not None:
            outcomes[name] = Outcome.of(fields) if fields else Outcome("crashed", "the process ended")
    return outcomes


def join(runs: Mapping[str, Mapping[str, Outcome]]) -> Suite:
    """Run -> test -> outcome the other way round. A test that a run does not have did not get its turn: it crashed."""
    names = list(dict.fromkeys(name for outcomes in runs.values() for name in outcomes))
    lacking = Outcome("crashed", "an earlier test ended the process")
    return {name: {run: runs[run].get(name, lacking) for run in RUNS} for name in names}


def family_of(test: str) -> str:
    """The folder of a test."""
    return test.partition("::")[0]


def to_plain(suite: Suite) -> dict[str, Any]:
    """For JSON: messages of failures alone, and no times."""
    return {name: {run: _fields(outcome) for run, outcome in runs.items()} for name, runs in suite.items()}


def of_plain(plain: Mapping[str, Any]) -> Suite:
    """What `to_plain` wrote."""
    return {name: {run: Outcome.of(fields) for run, fields in runs.items()} for name, runs in plain.items()}


def _fields(outcome: Outcome) -> dict[str, Any]:
    why = outcome.why if outcome.outcome in ("failed", "crashed") else ""
    fields = {**asdict(outcome), "why": why[:600], "cpu": 0.0}
    return {name: value for name, value in fields.items() if value or name == "outcome"}
