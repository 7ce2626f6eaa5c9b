"""The command line of ``python -m benchmarks.versions``."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import benchmarks.versions
from benchmarks import readme_tables
from benchmarks.versions.environments import COMBINATIONS, ROOT, Combination, SetupError, environment, releases
from benchmarks.versions.runs import Progress, parts, run_part, state_of_code, total
from benchmarks.versions.table import publish


def chosen(names: Sequence[str]) -> Iterator[Combination]:
    """The combinations whose names contain one of ``names``; without any, all."""
    known = [combination.name for combination in COMBINATIONS]
    for name in names:
        if not any(name in other for other in known):
            raise SystemExit(f"no combination is called {name}: {', '.join(known)}")
    for combination in COMBINATIONS:
        if not names or any(name in combination.name for name in names):
            yield combination


def say(*words: object) -> None:
    """A line of progress, at once, also into a file."""
    print(*words, flush=True)


def main() -> None:
    """Make environments, run what is not done, publish what is complete."""
    suite = parts()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.versions",
        description=benchmarks.versions.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="COMBINATION")
    parser.add_argument("--part", nargs="+", choices=list(suite), default=list(suite), help="these parts only")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venvs", help="for the environments (default: .venvs)")
    parser.add_argument("--torch-index", metavar="URL", help="take torch from here (PyTorch has one of CPU builds)")
    parser.add_argument("--workers", type=int, default=2, help="processes of pytest (default: 2)")
    parser.add_argument("--remove", action="store_true", help="drop each environment after its run")
    parser.add_argument("--list", action="store_true", help="what there is and what is done; runs nothing")
    given = parser.parse_args()
    state, failed = state_of_code(), False
    for combination in chosen(given.names):
        folder: Path = given.folder.absolute() / combination.name
        progress = Progress(folder.with_name(f"{folder.name}.json"), state)
        if given.list:
            say(combination.name)
            for part in suite:
                say(f"  {part}: {progress.done.get(part, 'to do')}")
            continue
        try:
            python = environment(combination, folder, given.torch_index)
        except SetupError as error:
            print(f"{combination.name}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        for part in (part for part in given.part if part not in progress.done):
            say(f"{combination.name}, {part}: {len(suite[part])} files of tests")
            progress.add(part, run_part(python, suite[part], folder / "junit.xml", given.workers))
            say(f"{combination.name}, {part}: {progress.done[part]}")
        outcome = total(progress.done.values())
        failed |= bool(outcome.failed)
        if progress.done.keys() >= suite.keys():
            publish(combination, releases(python), outcome, state)
            readme_tables.write()
        say(f"{combination.name}, {len(progress.done)} of {len(suite)} parts: {outcome}")
        if given.remove:
            shutil.rmtree(folder)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
