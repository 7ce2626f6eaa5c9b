"""Every block of code in the pages runs, and every line of a shell is tried (Sybil finds them)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import opskip_compile as opskip
from opskip_compile.models.tiny import FAMILIES
from tests.helpers.documented import make_place, named_things, offline
from tests.helpers.documented_commands import run_commands

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")
sybil = pytest.importorskip("sybil")
parsers = pytest.importorskip("sybil.parsers.markdown")
evaluators = pytest.importorskip("sybil.evaluators.python")

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "examples", *(ROOT / "benchmarks").iterdir())
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("*.md") if "```" in page.read_text(encoding="utf-8"))
LANGUAGES = {"python", "shell", "text", "{eval-rst}"}  # the last one is for the site, which is built strictly
DEEP = {"README", "usage", "inspection", "several-devices"}  # their ``model`` has 36 layers, as presets have them
INDENTED = re.compile(r"(?:^|\n)\n {4}\S")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    @cache
    def place(layers: int) -> Path:
        return make_place(tmp_path_factory.mktemp("place"), layers)

    return place


@pytest.fixture
def excerpts() -> list[str]:
    """The code of one FFN before and after, as the pages show parts of it: names of parameters shortened."""
    family = FAMILIES["llava"]
    report = opskip.explain(family.build(), family.inputs(), schedule="attend:1")
    lines = report.diff().operator("1.ffn").lines
    records = [record for which in ("before", "after") for record in (getattr(line, which) for line in lines)]
    return [re.sub(r"[\w.]+\.(\w+)\.weight", r"\1_weight", record.code) for record in records if record is not None]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_runs(
    page: Path, places: Callable[[int], Path], excerpts: list[str], monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    place = places(36 if page.stem == "inspection" else 2)
    monkeypatch.chdir(place)
    offline(monkeypatch, place)
    run = evaluators.PythonEvaluator()

    def python(example: Any) -> Any:
        if "import openai" in example.parsed:  # tests/vllm/test_examples.py asks a server
            return None
        if page.stem == "architecture":  # declares operations: tests/test_architecture_page.py has a process for that
            return None
        if re.search(r"^\.\.\.$", example.parsed, re.MULTILINE):
            return is_part(example.parsed, excerpts)
        return run(example)

    known = [parsers.CodeBlockParser("python", python), parsers.CodeBlockParser("shell", run_commands)]
    document = sybil.Sybil(known, path=str(page.parent)).parse(page)
    document.namespace.update(named_things(place, "deep" if page.stem in DEEP else "path/to/model"))
    if page.stem == "troubleshooting":  # speaks of a prompt that was answered
        opskip.compile(document.namespace["model"], schedule="attend:1")(**document.namespace["inputs"])
    examples = list(document.examples())
    assert len(examples) == len(re.findall(r"^```(?:python|shell)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    for example in examples:
        example.evaluate()


def is_part(shown: str, code: list[str]) -> None:
    """Lines of a graph: each is there, in the order shown."""
    rest = iter(code)
    for line in shown.splitlines():
        words = line.partition("  #")[0].rstrip()
        assert words == "..." or words in rest, f"not in the graph, or not in this order: {words}"


def test_lines_that_are_not_in_the_graph_are_seen() -> None:
    is_part("a = b\n...\nc = d  # why\n", ["a = b", "x", "c = d"])
    for wrong in ("c = d\n...\na = b\n", "...\ny = z\n"):
        with pytest.raises(AssertionError, match="not in the graph"):
            is_part(wrong, ["a = b", "x", "c = d"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_its_language(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    opened = re.findall(r"^```(\S*)", text, re.MULTILINE)[::2]
    assert set(opened) <= LANGUAGES
    assert not INDENTED.search(re.sub(r"```.*?```", "", text, flags=re.DOTALL)), "a block without a language"
