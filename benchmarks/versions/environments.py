"""The releases that are tested together, and an environment for each."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FACTS = "import platform, torch, transformers as t; print(platform.python_version(), torch.__version__, t.__version__)"


@dataclass(frozen=True)
class Combination:
    """Releases that are tested together."""

    python: str
    torch: str
    transformers: str

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return f"py{self.python}-torch{self.torch}-transformers{self.transformers}"


COMBINATIONS = (
    Combination("3.11", "2.13.0", "5.23.0"),
    Combination("3.11", "2.14.1", "5.24.0"),
    Combination("3.12", "2.11.0", "5.17.0"),
    Combination("3.13", "2.15.0", "5.24.0"),
)
"""The default set-up, then the oldest and the newest releases, each on another Python."""


class SetupError(Exception):
    """An environment that can't be made."""


def environment(combination: Combination, folder: Path, index: str | None) -> Path:
    """Its Python, installed as the Makefile installs the default one unless that was done before.

    Args:
        folder: of the environment.
        index: where to take torch from instead of pip's default.

    Raises:
        SetupError: there is no such Python, pip failed, or it installed something else.
    """
    python, ready, pins = folder / "bin" / "python", folder / "ready", folder / "constraints.txt"
    project = what_pip_reads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if not ready.exists() or ready.read_text(encoding="utf-8") != project:
        shutil.rmtree(folder, ignore_errors=True)
        _run([interpreter(combination.python), "-m", "venv", str(folder)])
        pins.write_text(constraints(combination), encoding="utf-8")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(pins)]
        _run([*pip, *(["--index-url", index] if index else []), "torch"])
        _run([*pip, "-e", f"{ROOT}[dev]"])
        installed = releases(python)
        if not matches(installed, combination):
            raise SetupError(f"{combination.name}: pip installed {installed}")
        ready.write_text(project, encoding="utf-8")
    return python


def what_pip_reads(project: str) -> str:
    """The part of pyproject.toml that an environment depends on: not how linters and tests are set up."""
    tables = tomllib.loads(project)
    tables["tool"] = {"setuptools": tables["tool"]["setuptools"]}
    return json.dumps(tables)


def interpreter(version: str) -> str:
    """A Python of that version: this one, one on the path, or the newest that pyenv has.

    Raises:
        SetupError: there is none.
    """
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda path: int(path.parts[-3].split(".")[2]))
    for candidate in (f"python{version}", *map(str, reversed(installed))):
        # A shim of pyenv is on the path for versions that are not chosen, too, and fails.
        if shutil.which(candidate) and subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
            return candidate
    raise SetupError(f"there is no Python {version} on the path")


def constraints(combination: Combination) -> str:
    """constraints.txt with the releases of the combination instead of the pinned ones."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for package in ("torch", "transformers"):
        text, count = re.subn(rf"(?m)^{package}==.*$", f"{package}=={getattr(combination, package)}", text)
        if count != 1:
            raise ValueError(f"constraints.txt: expected one pin of {package}, found {count}")
    return text


def releases(python: Path) -> dict[str, str]:
    """What is installed in an environment, as it calls itself."""
    output = subprocess.run([python, "-c", FACTS], capture_output=True, text=True, check=True).stdout
    return dict(zip(("python", "torch", "transformers"), output.splitlines()[-1].split(), strict=True))


def matches(installed: dict[str, str], combination: Combination) -> bool:
    """True if that is what was asked for; a build of torch such as ``+cpu`` does not matter."""
    return (
        installed["python"].startswith(f"{combination.python}.")
        and installed["torch"].partition("+")[0] == combination.torch
        and installed["transformers"] == combination.transformers
    )


def _run(command: Sequence[str]) -> None:
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SetupError(f"this failed: {' '.join(command)}")
