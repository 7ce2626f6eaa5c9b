"""Lines of a shell in the pages: ours are run, of others it is checked that what they name is there."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers.commands import call
from tests.helpers.documented import check_engine_arguments

ROOT = Path(__file__).parents[2]
# What makes a command short enough for a test; each comes after what the page says.
TOKENS = ("--answer-tokens", "1")
SHORTER = {
    "calibrate": ("--limit", "4", "--search", "scores", "--no-controls", "--no-stability", "--no-whole-front", *TOKENS),
    "diagnose": ("--limit", "4", *TOKENS),
    "eval": (
        "--limit",
        "4",
        "--eager",
        "--rounds",
        "0",
        "--cut",
        "0.3",
        "--method",
        "late",
        "--method",
        "fastv",
        *TOKENS,
    ),
}


def run_commands(example: Any) -> None:
    """Each line of a block, in the folder of the test."""
    for words in commands(example.parsed):
        assert words[0] in RUN, f"nobody knows how to try {words[0]!r}"
        RUN[words[0]](words[1:])


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command, without comments."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def _opskip(words: list[str]) -> None:
    if words[0] != "doctor":  # which compiles; it has tests of its own
        done = call(*words, *SHORTER.get(words[0], ()))
        assert done.exit_code == 0, done.output + done.stderr


def _torchrun(words: list[str]) -> None:
    """What each process runs, in one process."""
    at = words.index("-m")
    assert words[:at] == ["--nproc-per-node", "2"] and words[at + 1] == "opskip_compile"
    _opskip(words[at + 2 :])


def _make(words: list[str]) -> None:
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(words) <= rules, f"no rule in the Makefile: {words}"


def _pip(words: list[str]) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(known), f"no such extra: {extras}"


def _python(words: list[str]) -> None:
    """A script or a module of ours: it is there, and knows the options."""
    if words[0] == "-m":
        file = ROOT / words[1].replace(".", "/")
        files = [file.with_suffix(".py")] if not file.is_dir() else [file / "__main__.py"]
        words = words[2:]
    else:
        files, words = [ROOT / words[0]], words[1:]
    source = "".join(each.read_text(encoding="utf-8") for each in files)
    for word in words:
        assert not word.startswith("--") or f'"{word}"' in source, f"{files[0].name} has no {word}"


def _vllm(words: list[str]) -> None:
    assert words[0] == "serve"
    check_engine_arguments(words[1], json.loads(words[words.index("--additional-config") + 1]))


def _lmms_eval(words: list[str]) -> None:
    from opskip_compile.schedule.schedule import Schedule

    arguments = words[words.index("--model_args") + 1]
    (spec,) = re.findall(r"schedule=('[^']*'|[^,]*)", arguments)
    assert "pretrained=" in arguments and Schedule.of(spec.strip("'"))


RUN = {
    "opskip": _opskip,
    "torchrun": _torchrun,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "vllm": _vllm,
    "lmms-eval": _lmms_eval,
}
