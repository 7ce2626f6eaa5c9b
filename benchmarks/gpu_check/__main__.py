"""The command line of ``python -m benchmarks.gpu_check``: the steps in their order, each inside its time."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import benchmarks.gpu_check
from benchmarks.gpu_check.steps import STEPS, Setting
from opskip_compile.schedule.validation import write_json

Clock = Callable[[], float]
LEAST = 15.0  # seconds: with less no step is begun


def say(*words: object) -> None:
    """A line of progress, at once, also into a file."""
    print(*words, flush=True)


def run_step(name: str, setting: Setting, out: Path) -> bool:
    """One step in this process; False if it found something wrong."""
    found: list[dict[str, Any]] = []

    def keep(one: dict[str, Any]) -> None:
        found.append(one)
        say("  " + ", ".join(f"{key} {value}" for key, value in one.items() if not isinstance(value, list | dict)))
        write_json({"step": name, "setting": setting.to_dict(), "found": found}, out / f"{name}.json")

    STEPS[name].run(setting, keep)
    return not _is_wrong(found)


def _is_wrong(found: Sequence[Mapping[str, Any]]) -> bool:
    return any(one.get("wrong") for one in found)


def run_all(
    names: Sequence[str], minutes: float, command: Sequence[str], setting: Setting, out: Path, clock: Clock
) -> int:
    """Each in a process of its own, killed with all its children at its limit.

    Returns:
        How many failed, found something wrong, or were stopped or not begun before they had found anything.
    """
    end, bad = clock() + minutes * 60, 0
    for name in names:
        file = out / f"{name}.json"
        file.unlink(missing_ok=True)
        seconds = STEPS[name].quick_seconds if setting.quick else STEPS[name].seconds
        limit = min(seconds, end - clock())
        if limit < LEAST:
            say(f"{name}: not run, no time is left")
            bad += 1
            continue
        say(f"{name}: {STEPS[name].run.__doc__} ({limit:.0f} s at the most)")
        process = subprocess.Popen([*command, "--step", name], start_new_session=True)
        try:
            code = process.wait(limit)
            said, is_bad = f"failed ({code})" if code else "done", bool(code)
        except subprocess.TimeoutExpired:
            found = json.loads(file.read_text())["found"] if file.exists() else []
            said = f"stopped at its limit; it had found {len(found)} figures, which are kept"
            is_bad = not found or _is_wrong(found)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        bad += is_bad
        say(f"{name}: {said}")
    return bad


def main() -> None:
    """Run the steps, or the one of a child process."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=benchmarks.gpu_check.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"only these of {', '.join(STEPS)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a part of each step, in 3 minutes")
    parser.add_argument("--minutes", type=float, help="for all steps (default: 8.5; 2.8 with --quick)")
    parser.add_argument("--lower", choices=("inductor", "eager"), default="inductor", help="eager compiles nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="folder for the files")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = [name for name in given.steps if name not in STEPS]
    if unknown:
        parser.error(f"no step is called {unknown[0]}: {', '.join(STEPS)}")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu --quick --lower eager tries the script")
    given.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(given.device, given.quick, given.lower)
    if given.step:
        raise SystemExit(not run_step(given.step, setting, given.out))
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", given.device, "--lower", given.lower]
    command += ["--out", str(given.out), *(["--quick"] if given.quick else [])]
    minutes = given.minutes or (2.8 if given.quick else 8.5)
    raise SystemExit(bool(run_all(given.steps or list(STEPS), minutes, command, setting, given.out, time.monotonic)))


if __name__ == "__main__":
    main()
