"""README and docs: every link between pages leads somewhere, every file that they name is there, README stays short."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
FRONT = ROOT / "README.md"
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:benchmarks|docs|opskip_compile|passes|tests)/[\w./-]+)`")


def prose(text: str) -> str:
    """Without the blocks of code."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page in links to them."""
    seen: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(text), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def broken(page: Path) -> Iterator[str]:
    """The links of a page that lead nowhere; addresses on the web are not asked for."""
    for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        outside = not target.is_relative_to(ROOT)
        if outside or not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            yield link


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_anchors_are_those_of_github() -> None:
    text = "# A `b`, [c](d.md): e_f\n```\n# no\n```\n## Twice\n### Twice\n## x/y-z & 1\n"
    assert anchors(text) == {"a-b-c-e_f", "twice", "twice-1", "xy-z--1"}


def test_broken_links_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# There\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](#here) [b](there.md#there) [c](https://x.org/y) [d](there.md)\n"
        "[e](#no) [f](there.md#no) [g](no.md) [h](../out.md) ![i](no.png)\n```\n[j](code.md)\n```\n"
    )
    (tmp_path.parent / "out.md").touch()
    assert list(broken(page)) == ["#no", "there.md#no", "no.md", "../out.md", "no.png"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert not list(broken(page))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_are_there(page: Path) -> None:
    text = prose(page.read_text(encoding="utf-8"))
    assert not [name for name in FILE.findall(text) if not (ROOT / name).exists()]


def test_the_front_page_is_short() -> None:
    assert len(FRONT.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_front_page_lists_every_page_of_the_documentation() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(FRONT.read_text(encoding="utf-8"))}
    assert not set((ROOT / "docs").rglob("*.md")) - linked


@pytest.mark.parametrize("page", [FRONT, ROOT / "docs" / "quick-start.md"], ids=name_of)
def test_the_versions_that_are_supported_are_those_of_the_package(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    windows = {"Python": project["requires-python"]}
    for requirement in project["dependencies"]:
        name, window = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
        windows[name] = window
    text = " ".join(page.read_text(encoding="utf-8").split())
    for name in ("Python", "torch", "transformers"):
        major, first, beyond = re.fullmatch(r">=(\d+)\.(\d+),<\1\.(\d+)", windows[name]).groups()  # type: ignore[union-attr]
        assert f"{name} {major}.{first} to {major}.{int(beyond) - 1}" in text
