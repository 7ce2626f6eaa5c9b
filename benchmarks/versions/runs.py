"""The suite in parts, and what each part gave."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.versions.environments import ROOT

SMALL = 4  # folders with fewer files of tests run together, as the part "rest"
CODE = ("opskip_compile", "passes", "tests", "benchmarks")


@dataclass
class Outcome:
    """What some tests gave.

    Attributes:
        failed: name and first line of the message of each.
        skipped: why pytest left tests out -> how many.
    """

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: int = 0

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {len(self.failed)} failed, {sum(self.skipped.values())} skipped"
        return f"{counts}, {self.seconds // 60} min {self.seconds % 60} s"


def parts(tests: Path = ROOT / "tests") -> dict[str, list[str]]:
    """Every file of tests, by the part of a run that it belongs to: its folder, or "rest"."""
    files: dict[str, list[str]] = {}
    for file in sorted(tests.rglob("test_*.py")):
        below = file.relative_to(tests).parts
        files.setdefault(below[0] if len(below) > 1 else "", []).append("/".join((tests.name, *below)))
    large = {name: group for name, group in files.items() if name and len(group) >= SMALL}
    rest = [file for name, group in files.items() if name not in large for file in group]
    return {**large, "rest": rest} if rest else large


def state_of_code(root: Path = ROOT) -> str:
    """Changes with the code, the tests and what is installed; not with texts and results."""
    digest = hashlib.sha256((root / "pyproject.toml").read_bytes())
    for file in sorted(file for folder in CODE for file in (root / folder).rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def run_part(python: Path | str, files: Sequence[str], report: Path, workers: int, root: Path = ROOT) -> Outcome:
    """Run tests.

    Args:
        files: of tests, from ``root`` on.
        report: pytest writes here what became of each test.
        workers: processes of pytest.
    """
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files]
    command += ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []
    start = time.perf_counter()
    code = subprocess.run(command, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
    outcome = read_report(report) if report.exists() else Outcome()
    if code and not outcome.failed:
        outcome.failed.append(f"pytest ended with code {code}")
    outcome.seconds = round(time.perf_counter() - start)
    return outcome


def read_report(report: Path) -> Outcome:
    """What pytest wrote in its JUnit format."""
    outcome, skipped = Outcome(), Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [entry for tag in ("failure", "error") for entry in case.findall(tag)]
        left_out = case.find("skipped")
        if bad:
            name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
            outcome.failed.append(f"{name}: {_first_line(bad[0])}")
        elif left_out is not None:
            skipped[_first_line(left_out)] += 1
        else:
            outcome.passed += 1
    outcome.skipped = dict(sorted(skipped.items()))
    return outcome


def _first_line(entry: ElementTree.Element) -> str:
    return (entry.get("message") or "").partition("\n")[0][:200]


def total(outcomes: Iterable[Outcome]) -> Outcome:
    """Several parts as one."""
    whole, skipped = Outcome(), Counter[str]()
    for outcome in outcomes:
        whole.passed += outcome.passed
        whole.failed += outcome.failed
        whole.seconds += outcome.seconds
        skipped.update(outcome.skipped)
    whole.skipped = dict(sorted(skipped.items()))
    return whole


class Progress:
    """What the parts of one combination gave, kept in a file as long as ``state`` of the code is the same."""

    def __init__(self, path: Path, state: str) -> None:
        self.path, self.state = path, state
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        parts = kept["parts"] if kept.get("state") == state else {}
        self.done = {part: Outcome(**outcome) for part, outcome in parts.items()}

    def add(self, part: str, outcome: Outcome) -> None:
        """Keep what a part gave."""
        self.done[part] = outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"state": self.state, "parts": {name: asdict(done) for name, done in self.done.items()}}
        self.path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
