"""Run transformers' own tests of multimodal models three times, and write what came of it.

    python -m benchmarks.transformers_suite [--family NAME ...] [--run NAME ...] [--fresh]
    python -m benchmarks.transformers_suite --page-only         # the page again from the results

About an hour on 2 cores. The runs are ``plain``, and with every model compiled with schedule ``none`` and with
``late:0.5``. A family that was run is not run again, so a stop costs one family at most; ``--fresh`` forgets them. The
tests are brought to ``build/transformers_suite`` first (see `folder`); ``--repository`` and ``--revision`` say where
from, if not the tag of the installed version. Results go to ``benchmarks/results``. A difference between the runs that
no line of `differences.EXPLANATIONS` is about makes it fail.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.transformers_suite.differences import complaints, differences
from benchmarks.transformers_suite.folder import REPOSITORY, lay_out
from benchmarks.transformers_suite.outcomes import Outcome, Suite, join, of_plain, read_lines, to_plain
from benchmarks.transformers_suite.page import page, totals
from benchmarks.transformers_suite.selection import FAMILIES, RUNS, Family
from opskip_compile.output.environment import environment as measured_with

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "transformers_suite"
RESULTS = ROOT / "benchmarks" / "results" / "checks"
JSON_FILE, PAGE_FILE = RESULTS / "transformers_suite.json", RESULTS / "TRANSFORMERS_SUITE.md"


def run(family: Family, name: str, folder: Path) -> None:
    """One family in one run, in a process of its own; nothing if it was run already."""
    out = folder / "outcomes" / f"{family.folder}.{name.replace(':', '')}.jsonl"
    done = out.with_suffix(".done")
    if done.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    options = [
        "-q",
        "--tb=short",
        "--disable-warnings",
        "-o",
        "log_cli=0",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:logging",
    ]
    plugin = ["-p", "benchmarks.transformers_suite.plugin", "--suite-run", name, "--suite-out", str(out)]
    with out.with_suffix(".txt").open("w", encoding="utf-8") as text:
        code = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *plugin, family.path],
            cwd=folder,
            env=environment(folder),
            stdout=text,
            stderr=subprocess.STDOUT,
        ).returncode
    if not out.exists():
        raise SystemExit(f"{family.title}, {name}: no test began; see {text.name}")
    done.write_text(f"{code}\n")


def environment(folder: Path) -> dict[str, str]:
    """Of the tests: no hub, the CPU, one thread; the folder's ``tests`` come before this project's."""
    paths = os.pathsep.join(map(str, (folder, folder / "packages", ROOT)))
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "HF_HUB_OFFLINE": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "true",
        "TRANSFORMERS_TEST_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


def gather(folder: Path) -> Suite:
    """What all the runs wrote."""
    runs: dict[str, dict[str, Outcome]] = {name: {} for name in RUNS}
    for family in FAMILIES.values():
        files = {name: folder / "outcomes" / f"{family.folder}.{name.replace(':', '')}.jsonl" for name in RUNS}
        if all(file.with_suffix(".done").exists() for file in files.values()):
            for name, file in files.items():
                runs[name].update(read_lines(file))
    return join(runs)


def publish(results: dict[str, Any], suite: Suite) -> None:
    """Write the page, and fail on what is not explained."""
    PAGE_FILE.write_text(page(results, suite), encoding="utf-8")
    for name, counts in totals(suite).items():
        print(f"{name}: {', '.join(f'{count} {what}' for what, count in counts.items())}")
    if problems := complaints(differences(suite)):
        raise SystemExit("\n".join(problems))


def main() -> None:
    """Fetch, run, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="only these; publishes nothing")
    parser.add_argument("--run", action="append", choices=list(RUNS), help="only these; publishes nothing")
    parser.add_argument("--repository", default=REPOSITORY, help="of transformers: an address or a folder")
    parser.add_argument("--revision", default="", help="default: the tag of the installed version")
    parser.add_argument("--fresh", action="store_true", help="forget what was run and fetched")
    parser.add_argument("--page-only", action="store_true", help="the page from the JSON file")
    given = parser.parse_args()
    if given.page_only:
        results = json.loads(JSON_FILE.read_text(encoding="utf-8"))
        return publish(results, of_plain(results["tests"]))
    if given.fresh:
        shutil.rmtree(FOLDER, ignore_errors=True)
    sources = FOLDER / "sources.json"
    if not sources.exists():
        sources.write_text(json.dumps(lay_out(FOLDER, given.repository, given.revision)), encoding="utf-8")
    for family in given.family or FAMILIES:
        for name in given.run or RUNS:
            print(f"{FAMILIES[family].title}: {name}", flush=True)
            run(FAMILIES[family], name, FOLDER)
    if given.family or given.run:
        return None
    suite = gather(FOLDER)
    results = {
        **measured_with("cpu", "float32"),
        "sources": json.loads(sources.read_text(encoding="utf-8")),
        "totals": totals(suite),
        "tests": to_plain(suite),
    }
    JSON_FILE.write_text(json.dumps(results, indent=0) + "\n", encoding="utf-8")
    return publish(results, suite)


if __name__ == "__main__":
    main()
