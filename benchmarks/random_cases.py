"""Random cases against the oracle: (decoder, schedule, layout of the visual rows, batch, cache), as many as wanted.

    python -m benchmarks.random_cases --cases 20000 --seed 0 --json FILE
    python -m benchmarks.random_cases --seed 0 --only 17:5        # one case again: decoder 17, case 5

A decoder is captured once for its cases (see ``tests/random_decoders.py``). ``--start`` goes on at a later decoder.
The exit code is 1 if any case failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from opskip_compile import _compat
from opskip_compile.passes.tune import onednn
from tests.helpers.random_decoders import Case, Subject, check, make_case, make_subject, room

STRIDE = 10**6  # decoders of one seed


class Tally:
    """What ran so far."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.failures: list[dict[str, Any]] = []
        self.cases = 0

    def count(self, what: str, key: str, n: int = 1) -> None:
        self.counts.setdefault(what, Counter())[key] += n

    def add(self, subject: Subject, case: Case, number: int) -> None:
        """Check one case and count it."""
        self.cases += 1
        self.count("decoder", subject.name)
        for trait in ("cache", "attention", "mask", "chunks", "way"):
            if trait in subject.traits:
                self.count(trait, subject.traits[trait])
        share = case.visual.float().mean(1)
        self.count("batch", str(len(share)))
        for value in share.tolist():
            self.count("rows of an element", {0.0: "none visual", 1.0: "all visual"}.get(value, "some visual"))
        done = check(subject, case, shows=number % 8 == 0)
        self.count("cases", "skipped" if done.skipped else "nothing skipped")
        self.count("operators", "of the schedule", done.wanted)
        self.count("operators", "skipped", len(done.skipped))
        for _, _, rows in done.skipped:
            self.count("operators", f"skipped, rows {rows}")
        if done.skipped:
            self.count("pushed down", "wholly" if done.whole else "some operations run on every row")
        for reason in done.reasons:
            self.count("why full", reason)

    def fail(self, number: int, i: int, subject: Subject, case: Case, error: Exception) -> None:
        """Note what reproduces the failure."""
        where = f"--only {number}:{i}"
        text = f"{type(error).__name__}: {error}"
        self.failures.append(
            {"case": where, "decoder": subject.name, "traits": subject.traits, "drawn": str(case), "error": text[:2000]}
        )
        tqdm.write(f"FAILED {where} {subject.name} {subject.traits}\n  {case}\n  {text[:400]}")


def run(
    tally: Tally, number: int, seed: int, cases: range, family: str | None, bar: Any = None, trace: bool = False
) -> None:
    """All cases of one decoder."""
    with room():
        subject = make_subject(seed * STRIDE + number, family)
        for i in cases:
            case = make_case(subject, seed * STRIDE + number, i)
            try:
                tally.add(subject, case, i)
            except Exception as error:
                tally.fail(number, i, subject, case, error)
                if trace:
                    traceback.print_exc()
            if bar is not None:
                bar.update()


def main() -> int:
    """Run, print the tally, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--per-decoder", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first decoder")
    parser.add_argument("--family", help="a text decoder such as llama, or program: decoders drawn op by op")
    parser.add_argument("--only", help="DECODER:CASE, or DECODER for all of its cases")
    parser.add_argument("--onednn", action="store_true", help="linear layers of any size in oneDNN, on any processor")
    parser.add_argument("--json", type=Path, help="write the tally, after every decoder")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if given.onednn:
        onednn.SMALLEST = onednn.LEAST = 1
        _compat.blas_is_slow = lambda: True
    tally, start = Tally(), time.perf_counter()
    if given.only:
        number, _, i = given.only.partition(":")
        cases = range(int(i), int(i) + 1) if i else range(given.per_decoder)
        run(tally, int(number), given.seed, cases, given.family, trace=True)
    else:
        bar = tqdm(total=given.cases, unit="case")
        number = given.start
        while tally.cases < given.cases:
            run(tally, number, given.seed, range(min(given.per_decoder, given.cases - tally.cases)), given.family, bar)
            number += 1
            if given.json:
                write(given.json, tally, given, number, time.perf_counter() - start)
        bar.close()
    for what, counts in tally.counts.items():
        print(f"{what}: " + ", ".join(f"{key} {n}" for key, n in counts.most_common()))
    print(f"{tally.cases} cases, {len(tally.failures)} failed, {time.perf_counter() - start:.0f} s")
    return 1 if tally.failures else 0


def write(path: Path, tally: Tally, given: argparse.Namespace, until: int, seconds: float) -> None:
    """The tally as JSON."""
    plain = {
        "seed": given.seed,
        "family": given.family,
        "onednn": given.onednn,
        "decoders": [given.start, until],
        "per_decoder": given.per_decoder,
        "cases": tally.cases,
        "failed": len(tally.failures),
        "seconds": round(seconds),
        "torch": torch.__version__,
        "counts": {what: dict(counts.most_common()) for what, counts in tally.counts.items()},
        "failures": tally.failures,
    }
    path.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
