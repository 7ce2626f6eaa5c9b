"""`python -m benchmarks.versions`: which releases it covers, how it counts, and that a run goes on where it stopped."""

from __future__ import annotations

import json
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from benchmarks.versions import __main__ as command
from benchmarks.versions import environments, runs, table
from benchmarks.versions.environments import (
    COMBINATIONS,
    ROOT,
    Combination,
    SetupError,
    constraints,
    matches,
    what_pip_reads,
)
from benchmarks.versions.runs import Outcome, Progress, parts, run_part, state_of_code, total
from benchmarks.versions.table import markdown, publish

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEWEST = COMBINATIONS[3]

TESTS = """
import pytest

def test_right(): pass

@pytest.mark.parametrize("n", [1, 2])
def test_number(n): assert n == 1, "n is too large"

def test_left_out(): pytest.skip("needs more")

@pytest.fixture
def broken(): raise OSError("no room")

def test_of_a_broken_fixture(broken): pass
"""


def windows() -> dict[str, SpecifierSet]:
    """Which releases pyproject.toml allows."""
    found = {requirement.name: requirement.specifier for requirement in map(Requirement, PROJECT["dependencies"])}
    return {**found, "python": SpecifierSet(PROJECT["requires-python"])}


@pytest.mark.parametrize("package", ["python", "torch", "transformers"])
def test_the_combinations_are_in_the_window_and_reach_its_ends(package: str) -> None:
    window = windows()[package]
    covered = sorted({tuple(map(int, getattr(known, package).split(".")[:2])) for known in COMBINATIONS})
    assert all(f"{major}.{minor}" in window for major, minor in covered)
    for (major, minor), step in ((covered[0], -1), (covered[-1], 1)):
        assert f"{major}.{minor + step}" not in window, "a release that is allowed is not tested"


def test_the_pinned_set_up_is_one_of_them() -> None:
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert any(constraints(known) == pinned for known in COMBINATIONS)
    assert "torch==2.15.0\n" in constraints(NEWEST) and "torchao" in constraints(NEWEST)


def test_an_environment_does_not_depend_on_the_linters() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = what_pip_reads(project)
    assert what_pip_reads(project.replace("line-length = 120", "line-length = 100")) == known
    assert (
        what_pip_reads(project.replace('"opskip_compile.passes" = "passes"', '"opskip_compile.passes" = "p"')) != known
    )
    assert what_pip_reads(project.replace("networkx", "networkx2")) != known


def test_what_pip_installed_is_compared() -> None:
    installed = {"python": "3.13.0", "torch": "2.15.0+cpu", "transformers": "5.24.0"}
    assert matches(installed, NEWEST)
    for name, other in (("python", "3.12.1"), ("torch", "2.14.1"), ("transformers", "5.23.0")):
        assert not matches({**installed, name: other}, NEWEST)
    assert environments.releases(Path(sys.executable))["python"] == sys.version.split()[0]


def test_a_python_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environments.interpreter(f"3.{sys.version_info.minor}") == sys.executable
    with pytest.raises(SetupError, match=r"there is no Python 3\.99"):
        environments.interpreter("3.99")


def test_every_file_of_tests_is_in_one_part() -> None:
    files = [file for group in parts().values() for file in group]
    assert sorted(files) == sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py"))
    assert "tests/test_house.py" in parts()["rest"] and len(parts()["models"]) >= runs.SMALL


def test_a_part_is_counted(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    outcome = run_part(sys.executable, ["test_some.py"], tmp_path / "junit.xml", workers=1, root=tmp_path)
    assert outcome.passed == 2 and outcome.skipped == {"needs more": 1}
    number, fixture = outcome.failed
    assert number.startswith("test_some::test_number[2]: AssertionError: n is too large")
    assert fixture.startswith('test_some::test_of_a_broken_fixture: failed on setup with "OSError: no room')


@pytest.mark.parametrize("code", ["import os\nos._exit(3)", "def broken(:"])
def test_pytest_that_dies_is_a_failure(code: str, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(code)
    assert len(run_part(sys.executable, ["test_some.py"], tmp_path / "junit.xml", 1, tmp_path).failed) == 1


def test_parts_are_kept_while_the_code_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "progress" / "some.json"
    one, other = Outcome(3, ["a: b"], {"why": 1}, 5), Outcome(4, [], {"why": 2, "other": 1}, 6)
    Progress(path, "now").add("models", one)
    kept = Progress(path, "now")
    kept.add("rest", other)
    assert Progress(path, "now").done == {"models": one, "rest": other}
    assert not Progress(path, "later").done
    assert total(kept.done.values()) == Outcome(7, ["a: b"], {"other": 1, "why": 3}, 11)


def test_the_state_is_that_of_the_code(tmp_path: Path) -> None:
    for folder in ("passes", "docs"):
        (tmp_path / folder).mkdir()
    for name in ("pyproject.toml", "passes/a.py", "docs/a.md"):
        (tmp_path / name).write_text("one")
    states = [state_of_code(tmp_path)]
    for name in ("docs/a.md", "passes/a.py", "pyproject.toml"):
        (tmp_path / name).write_text("two")
        states.append(state_of_code(tmp_path))
    assert [a == b for a, b in pairwise(states)] == [True, False, False]


def test_results_are_merged_and_shown(tmp_path: Path) -> None:
    last, first = COMBINATIONS[-1], COMBINATIONS[0]
    publish(last, {"python": "3.13.0", "torch": "2.15.0", "transformers": "5.24.0"}, Outcome(5), "s", tmp_path)
    releases = {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
    for failed in (["x: y"], ["test_a: no"]):  # a second run replaces the first
        publish(first, releases, Outcome(1200, failed, {"no GPU": 2}, 90), "s", tmp_path)
    figures = json.loads((tmp_path / "versions.json").read_text(encoding="utf-8"))
    assert list(figures["combinations"]) == [first.name, last.name]
    text = (tmp_path / "VERSIONS.md").read_text(encoding="utf-8")
    assert "| 3.11.7 | 2.13.0+cpu | 5.23.0 | 1,200 | 1 | 2 | 2 |\n| 3.13.0 | 2.15.0 | 5.24.0 | 5 | 0 | 0 | 0 |" in text
    assert f"## Failed: {first.name}\n\n* test_a: no\n" in text and "x: y" not in text
    assert f"* no GPU: 2 ({first.name})\n" in text and "state" not in text
    figures["combinations"][first.name]["note"] = "by hand"
    assert f"\n* {first.name}: by hand\n" in markdown(figures["combinations"])
    figures["combinations"][last.name].update(code="another", skipped={"no GPU": 2})
    text = markdown(figures["combinations"])
    assert "* no GPU: 2 in each\n" in text and "not all of the same state" in text


def test_the_published_table_is_that_of_the_figures() -> None:
    figures, text = table.RESULTS / "versions.json", table.RESULTS / "VERSIONS.md"
    assert figures.exists() == text.exists()
    if figures.exists():
        combinations = json.loads(figures.read_text(encoding="utf-8"))["combinations"]
        assert text.read_text(encoding="utf-8") == markdown(combinations)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one combination, the table last: it holds a combination once all of its parts are there."""
    ran, published = list[str](), list[Outcome]()
    monkeypatch.setattr(command, "parts", lambda: {"a": ["a.py"], "b": ["b.py"], "c": ["c.py"]})
    monkeypatch.setattr(command, "environment", lambda combination, folder, index: folder / "bin" / "python")
    monkeypatch.setattr(command, "releases", lambda python: {})
    monkeypatch.setattr(command.readme_tables, "write", lambda: None)
    monkeypatch.setattr(command, "publish", lambda combination, releases, outcome, state: published.append(outcome))

    def run(python: Path, files: list[str], report: Path, workers: int) -> Outcome:
        assert python.parts[-3] == NEWEST.name
        ran.extend(files)
        if files == ["c.py"] and ran.count("c.py") == 1:
            raise KeyboardInterrupt
        return Outcome(1, seconds=2)

    monkeypatch.setattr(command, "run_part", run)
    folder = ["--folder", str(tmp_path)]
    for arguments in (["--part", "b"], [], []):
        monkeypatch.setattr(sys, "argv", ["versions", "py3.13-torch2.15", *arguments, *folder])
        with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
            command.main()
        assert bool(published) == (ran[-1] == "c.py" and ran.count("c.py") == 2)
    assert ran == ["b.py", "a.py", "c.py", "c.py"] and published == [Outcome(3, seconds=6)]
    assert isinstance(ended.value, SystemExit) and not ended.value.code


def test_names_on_the_command_line() -> None:
    assert list(command.chosen([])) == list(COMBINATIONS)
    assert list(command.chosen(["torch2.15", "py3.12"])) == list(COMBINATIONS[2:])
    assert list(command.chosen(["torch2.11"])) == [Combination("3.12", "2.11.0", "5.17.0")]
    with pytest.raises(SystemExit, match=r"no combination is called torch2\.16"):
        list(command.chosen(["torch2.16"]))
