"""Where the tests come from, and how the folder in which they run is laid out.

PyPI's source distribution of transformers has the tests that all models share, but neither the test file of a model nor
those of generation: these come from a repository of transformers, at the tag of the installed version by default. If
they are of another version, the shared tests are still those of the installed one. Nothing of it is kept
in this project.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

REPOSITORY = "https://github.com/huggingface/transformers"
PACKAGES = ("parameterized", "httpx", "requests")
"""What the tests import and this project does not need."""


def lay_out(folder: Path, repository: str = REPOSITORY, revision: str = "") -> dict[str, str]:
    """Make ``folder`` ready for pytest; says where the tests came from."""
    version = transformers.__version__
    commit = from_repository(folder, repository, revision or f"refs/tags/v{version}")
    with tempfile.TemporaryDirectory() as downloads:
        pip("download", "--no-deps", "--no-binary", ":all:", "--dest", downloads, f"transformers=={version}")
        (archive,) = Path(downloads).glob("*.tar.gz")
        from_archive(folder, archive)
    pip("install", "--target", str(folder / "packages"), "--upgrade", *PACKAGES)
    link_source(folder, Path(transformers.__file__).parent)
    (folder / "pytest.ini").write_text("[pytest]\n")  # else the settings of this project hold for them
    return {"the shared tests": f"transformers {version} from PyPI", "the models' own tests": commit}


def pip(*arguments: str) -> None:
    """The installer of this environment."""
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", "--disable-pip-version-check", *arguments[1:]]
    subprocess.run(command, check=True)


def from_repository(folder: Path, repository: str, revision: str) -> str:
    """``tests`` and ``utils`` at one revision; returns its commit and the version that it says it is."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for part in ("tests", "utils", ".git"):
        shutil.rmtree(folder / part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    git("init", "--quiet")
    git("fetch", "--quiet", "--depth", "1", repository, revision)
    git("checkout", "--quiet", "FETCH_HEAD", "--", "tests", "utils")
    package = git("show", "FETCH_HEAD:src/transformers/__init__.py")
    version = next(line.split('"')[1] for line in package.splitlines() if line.startswith("__version__ ="))
    return f"transformers {version}, commit {git('rev-parse', 'FETCH_HEAD')[:12]}"


def from_archive(folder: Path, archive: Path) -> list[str]:
    """The shared tests of a source distribution, in the place of those that are there; returns their names."""
    names = []
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            name = member.name.partition("/")[2]
            content = files.extractfile(member) if re.fullmatch(r"tests/\w+\.py", name) else None
            if content is not None:
                (folder / name).write_bytes(content.read())
                names.append(name)
    return sorted(names)


def link_source(folder: Path, package: Path) -> None:
    """Some tests read files under ``src/transformers``: they get the installed ones."""
    link = folder / "src" / "transformers"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(package, target_is_directory=True)
