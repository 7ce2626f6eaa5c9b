"""What is handed out: the source distribution holds what ``make test`` needs, the wheel the package and no more."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parent.parent
FOLDERS = ("opskip_compile", "passes", "tests", "benchmarks", "docs", "examples")
FILES = (
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "constraints.txt",
)
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools puts commands of its own there
build_meta.build_sdist(out)
build_meta.build_wheel(out)
"""


def _copy(source: str, target: str) -> str:
    """Weights as empty files: they take a second each to be packed."""
    if source.endswith(".safetensors"):
        Path(target).touch()
        return target
    return shutil.copyfile(source, target)


def _files(root: Path, folder: str) -> set[str]:
    return {file.relative_to(root).as_posix() for file in (root / folder).rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A copy of the project, the folder of its two archives, and what building them said. By the setuptools that is
    installed, so that nothing is downloaded."""
    copy, out = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("archives")
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored, copy_function=_copy)
    for file in FILES:
        shutil.copyfile(ROOT / file, copy / file)
    command = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=True)
    return copy, out, done.stdout + done.stderr


def test_source_distribution(built: tuple[Path, Path, str]) -> None:
    copy, out, _ = built
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = set(FILES).union(*(_files(copy, folder) for folder in FOLDERS))
    assert sorted(needed - names) == []
    assert {"tests/conftest.py", "tests/helpers/support/zoo.py", "docs/architecture.md"} <= needed


def test_wheel(built: tuple[Path, Path, str]) -> None:
    copy, out, _ = built
    (archive,) = out.glob("*.whl")
    names = {name for name in zipfile.ZipFile(archive).namelist() if ".dist-info/" not in name}
    passes = {f"opskip_compile/{name}" for name in _files(copy, "passes")}
    assert names == _files(copy, "opskip_compile") | passes


def test_nothing_is_complained_of(built: tuple[Path, Path, str]) -> None:
    """But that byte-compiling is off, where it is."""
    lines = [line for line in built[2].splitlines() if "warning" in line.lower() or "absent" in line]
    assert [line for line in lines if "byte-compiling" not in line] == []


def test_the_version_stands_in_one_place(built: tuple[Path, Path, str]) -> None:
    """In the package; the archives and the newest dated release of the changelog have it from there."""
    from opskip_compile import __version__

    names = sorted(archive.name for archive in built[1].glob("opskip_compile-*"))
    assert names == [f"opskip_compile-{__version__}-py3-none-any.whl", f"opskip_compile-{__version__}.tar.gz"]
    released = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == __version__
